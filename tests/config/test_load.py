import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from ltcore.config.load import load_run
from ltcore.config.recipes import read_run
from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.objective.registry import BASES, TERMS
from ltcore.training.same_run import refuse_differences


@pytest.fixture(scope="module")
def plain():
    return RunConfig.from_dict({"name": "plain"})


@pytest.fixture(scope="module")
def full():
    return load_run(
        "digits_glt_lpa_dro_ifl", {"train.threads": 3, "augment.view1": "none", "train.optim.milestones": "0.5"}
    )


def words(run, **overrides):
    """The message of the ConfigError that the override causes."""
    with pytest.raises(ConfigError) as caught:
        run.replace({key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


# ---- round trips


def test_every_form_reads_back_as_the_same_run(full):
    assert RunConfig.from_dict(full.to_dict()) == full
    assert RunConfig.from_dict(json.loads(json.dumps(full.to_dict()))) == full
    assert RunConfig.from_dict(yaml.safe_load(full.to_yaml())) == full
    assert RunConfig.from_flat(full.to_flat()) == full
    assert RunConfig.from_flat({key: None if v is None else str(v) for key, v in full.to_flat().items()}) == full


def test_options_of_what_is_not_chosen_are_not_stored_and_not_read():
    run = load_run("cifar100_lt_paco")
    values = run.to_flat()
    options = {key for key in values if key.startswith("objective.base_options.")}
    assert "objective.base_options.paco.sample_weight" in options
    assert all(key.startswith("objective.base_options.paco.") for key in options)
    of_another_version = {"objective.base_options.gone.option": 1, "objective.base_options.focal.gamma": 9.0}
    assert RunConfig.from_flat(values | of_another_version) == run
    refuse_differences("a run", values | of_another_version, values)


def test_flat_holds_scalars_under_dotted_keys(plain, full):
    values = full.to_flat()
    assert values["train.optim.milestones"] == "0.5"
    assert values["objective.terms.lpa.num_attributes"] == 16
    assert plain.to_flat()["objective.terms.lpa"] is None
    assert plain.to_flat()["train.optim.milestones"] == "0.8,0.9"
    assert all(isinstance(v, str | int | float | bool | None) for v in values.values())


def test_text_is_read_by_the_type_of_the_field(plain):
    run = plain.replace(
        {
            "train.optim.lr": "1e-4",
            "train.epochs": "12",
            "train.optim.nesterov": "true",
            "train.threads": "null",
            "train.optim.clip_norm": "2",
            "train.optim.milestones": "0.25,0.5,0.75",
            "data.uri": "5",
        },
    )
    optim = run.train.optim
    assert (optim.lr, run.train.epochs, optim.nesterov, run.train.threads) == (1e-4, 12, True, None)
    assert (optim.clip_norm, optim.milestones, run.data.uri) == (2.0, (0.25, 0.5, 0.75), "5")
    assert isinstance(optim.clip_norm, float)


def test_yaml_1e_4_is_a_number_where_the_field_says_so(tmp_path):
    (tmp_path / "r.yaml").write_text("train: {optim: {lr: 1e-4}}\n")
    assert yaml.safe_load("1e-4") == "1e-4"  # YAML 1.1 alone would take it for text
    assert load_run(str(tmp_path / "r.yaml")).train.optim.lr == 1e-4


# ---- terms


def test_a_key_below_a_null_term_switches_it_on_with_its_defaults(plain):
    run = plain.replace({"objective.terms.dro.radius": "0.5"})
    assert run.objective.terms.dro == dataclasses.replace(TERMS["dro"].build.Config(), radius=0.5)
    assert run.objective.terms.lpa is None


@pytest.mark.parametrize("name", TERMS)
def test_on_and_null_switch_a_term(plain, name):
    key = f"objective.terms.{name}"
    run = plain.replace({key: "on"})
    assert getattr(run.objective.terms, name) == TERMS[name].build.Config()
    assert run.replace({key: "null"}) == plain
    assert run.replace({key: None}) == plain


def test_the_last_override_wins(plain):
    run = plain.replace({"objective.terms.dro.radius": "0.5", "objective.terms.dro": "null"})
    assert run.objective.terms.dro is None
    run = plain.replace({"objective.terms.dro": "null", "objective.terms.dro.radius": "0.5"})
    assert run.objective.terms.dro.radius == 0.5


# ---- messages


def test_unknown_key_names_the_nearest_on_its_level(plain):
    assert words(plain, objective__terms__dor__weight=1) == (
        "objective.terms.dor.weight: unknown key. Did you mean objective.terms.dro.weight? "
        "(ltcore keys objective.terms)"
    )
    assert words(plain, lr=1) == "lr: unknown key. Did you mean train.optim.lr? (ltcore keys)"
    assert words(plain, train__epochs__x=1).startswith("train.epochs.x: unknown key.")
    assert words(plain, zzzzzz=1) == "zzzzzz: unknown key. (ltcore keys)"


def test_unknown_key_in_a_file_is_named_to_its_leaf(tmp_path):
    (tmp_path / "r.yaml").write_text("objective: {terms: {dor: {weight: 1}}}\n")
    with pytest.raises(
        ConfigError, match=r"^objective.terms.dor.weight: unknown key. Did you mean objective.terms.dro.weight"
    ):
        load_run(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train.optim.lr",
            "abc",
            "train.optim.lr=abc: expected a finite number (ltcore keys train.optim.lr).",
        ),
        ("train.optim.lr", math.nan, "train.optim.lr=nan: expected a finite number"),
        ("objective.terms.dro.weight", "inf", "objective.terms.dro.weight=inf: expected a finite number"),
        ("train.optim.milestones", [0.5, math.nan], "train.optim.milestones=nan: expected numbers such as 0.8,0.9"),
        ("seed", True, "seed=true: expected a whole number"),
        ("train.optim.lr", True, "train.optim.lr=true: expected a finite number"),
        ("train.threads", False, "train.threads=false: expected a whole number or null"),
        ("train.epochs", "1.5", "train.epochs=1.5: expected a whole number"),
        ("train.epochs", "null", "train.epochs=null: expected a whole number"),
        ("train.optim.nesterov", "maybe", "train.optim.nesterov=maybe: expected true or false"),
        ("data.uri", 5, "data.uri=5: expected text"),
        ("train.optim.lr", "-1", "train.optim.lr must be a finite number > 0, got -1.0."),
        ("train.optim.milestones", "0.9,0.8", "train.optim.milestones must be rising fractions of training in (0, 1)"),
        ("objective.terms.dro.radius", -1, "objective.terms.dro.radius must be a finite number >= 0, got -1.0."),
        ("objective.base", "nope", "objective.base must be one of"),
        ("train.select", "test/top1", "train.select must be one of val/balanced_accuracy, val/top1"),
        ("tracking.wandb_mode", "on", "tracking.wandb_mode must be one of auto, online, offline, disabled, got 'on'."),
        ("name", "a b", "name must consist of letters, digits, '.', '_' and '-'"),
        ("seed", -1, "seed must be >= 0, got -1."),
        ("train", 3, "train=3: train is a section; give train.<key>=... (ltcore keys train)."),
        ("objective.terms.dro", 3, "objective.terms.dro=3: objective.terms.dro is a section; give null, on, or "),
    ],
)
def test_wrong_values_are_named_with_what_was_expected(plain, key, value, message):
    assert words(plain, **{key.replace(".", "__"): value}).startswith(message)


def test_every_wrong_key_is_reported_at_once(plain):
    text = words(plain, train__epochs="x", data__lanes="y")
    assert "train.epochs=x" in text and "data.lanes=y" in text


def test_missing_name_is_named():
    with pytest.raises(ConfigError, match=r"^name: required key is missing"):
        RunConfig.from_dict({})


# ---- combinations


def test_accumulation_is_refused_for_losses_that_compare_the_batch(plain):
    assert plain.replace({"train.accumulate": 4}).train.accumulate == 4
    text = words(plain, train__accumulate=2, objective__terms__dro="on")
    assert text.startswith(
        "train.accumulate=2 would change the value of objective.terms.dro, which compares the samples"
    )
    assert words(plain, train__accumulate=3).startswith("train.accumulate=3 must divide batch_size=128")
    assert words(plain, model__ghost_batch=48).startswith("model.ghost_batch=48 must divide the 128 images of a pass")
    assert plain.replace({"model.ghost_batch": 32, "train.accumulate": 4}).model.ghost_batch == 32
    assert words(plain, model__ghost_batch=64, train__accumulate=4).startswith(
        "model.ghost_batch=64 must divide the 32"
    )
    irm = words(plain, train__accumulate=2, objective__terms__ifl__irm_weight=0.1)
    assert irm.startswith("train.accumulate=2 would change the value of objective.terms.ifl, which")
    assert plain.replace({"train.accumulate": 2, "objective.terms.ifl": "on"}).train.accumulate == 2


@pytest.mark.parametrize("base", ["class_balanced", "ldam", "ride"])
def test_accumulation_is_refused_where_a_sum_over_the_batch_divides_the_loss(plain, base):
    keys = {"train.accumulate": 2, "objective.base": base}
    if base != "class_balanced":
        keys |= {"model.head": "cosine", "model.cosine_scale": 30}
    if base == "ride":
        keys["model.num_experts"] = 3
    assert plain.replace(keys).train.accumulate == 2
    text = words(
        plain,
        **{k.replace(".", "__"): v for k, v in keys.items()},
        **{f"objective__base_options__{base}__weight_norm": "batch_sum"},
    )
    assert text.startswith(f"train.accumulate=2 would change the value of objective.base={base}, which")
    assert text.endswith(f"or more workers, or objective.base_options.{base}.weight_norm=batch.")


def test_a_term_with_weight_zero_does_not_stand_in_the_way(plain):
    run = plain.replace({"train.accumulate": 2, "objective.terms.dro.weight": 0, "augment.mixup_alpha": 1})
    assert run.objective.active_terms() == {}


def test_mixup_is_refused_with_terms_and_bases_that_need_one_class(plain):
    for term in ("lpa", "dro"):
        assert words(plain, augment__mixup_alpha=1, **{f"objective__terms__{term}": "on"}).startswith(
            f"augment.mixup_alpha=1.0 does not go with objective.terms.{term}: a mixed image has no single class"
        )
    assert plain.replace({"augment.mixup_alpha": 1, "objective.terms.ifl": "on"}).augment.mixup_alpha == 1
    assert "irm_weight > 0" in words(plain, augment__mixup_alpha=1, objective__terms__ifl__irm_weight=0.1)
    for name, row in BASES.items():
        if not row.build.label_mix:
            assert f"objective.base={name}" in words(plain, augment__mixup_alpha=1, objective__base=name)


def test_every_way_to_mix_is_named_where_it_is_refused(plain):
    cut = {"augment__cutmix_alpha": 1, "objective__terms__lpa": "on"}
    assert words(plain, **cut).endswith("Set augment.cutmix_alpha=0 or objective.terms.lpa=null.")
    both = words(plain, augment__cutmix_alpha=1, augment__mixup_alpha=0.2, objective__base="paco")
    assert both.startswith("augment.mixup_alpha=0.2 and augment.cutmix_alpha=1.0 do not go with objective.base=paco")
    assert words(plain, augment__remix_kappa=3).startswith("augment.remix_kappa=3 needs mixed images")
    aware = words(plain, augment__mixup_alpha=1, train__sampling="class_aware")
    assert aware.startswith(
        "augment.mixup_alpha=1.0 does not go with train.sampling=class_aware, by which images of one class"
    )


TABLE = "objective.base_options.cross_entropy.class_weights"


@pytest.mark.parametrize("written", ["{cat: 2, no way: 0.5}", {"cat": 2, "no way": 0.5}, '{"cat": 2, "no way": 0.5}'])
def test_a_table_of_classes_is_one_value_however_it_is_written(plain, written):
    run = plain.replace({TABLE: written})
    assert run.to_flat()[TABLE] == '{"cat": 2, "no way": 0.5}'
    assert RunConfig.from_flat(run.to_flat()) == run == RunConfig.from_dict(yaml.safe_load(run.to_yaml()))
    assert plain.replace({TABLE: "[1, 2.5]"}).to_flat()[TABLE] == "[1, 2.5]"
    assert plain.replace({TABLE: "null"}) == plain


def test_a_table_that_is_none_is_refused(plain):
    key = {"objective__base_options__cross_entropy__class_weights": None}
    for value, said in (
        (
            "{cat: [1}",
            f"{TABLE}={{cat: [1}}: expected a table such as {{cat: 2.0}} (did not find expected ',' or ']').",
        ),
        ("{no: 2}", f"{TABLE} has the name False, which YAML does not read as text: put it in quotes."),
        ("{cat: 2000-01-01}", f"{TABLE}: expected one number for each class, got datetime.date(2000, 1, 1)."),
        ("[&a [1], *a]", f"{TABLE}: expected one number for each class, got [1]."),
        ("{" * 2**20 + "}", f"{TABLE} has 1048577 characters; at most 1048576 are read."),
        ("{cat: -2}", f"{TABLE} must be finite numbers >= 0, got -2."),
        (
            "inverse",
            f"{TABLE} must be null, auto, natural, a table such as {{cat: 2.0}} or a list with one weight per class, got "
            "'inverse'.",
        ),
        (True, f"{TABLE}=true: expected text or a table or null (ltcore keys {TABLE})."),
    ):
        assert words(plain, **dict.fromkeys(key, value)) == said


def test_weights_by_class_balance_once(plain):
    auto = {f"{TABLE.replace('.', '__')}": "auto"}
    assert "balanced twice" in words(plain, **auto, train__sampling="square_root", objective__prior="dataset")
    assert "nothing is left to balance" in words(plain, **auto, train__sampling="class_balanced")
    assert plain.replace({TABLE: "auto", "train.sampling": "square_root"}).train.sampling == "square_root"
    assert "balanced twice" in words(plain, **auto, stage2="on")
    norm = {"objective__base_options__cross_entropy__weight_norm": "batch_sum", "train__accumulate": 2}
    assert words(plain, **auto, **norm).endswith("or objective.base_options.cross_entropy.weight_norm=batch.")
    assert plain.replace({k.replace("__", "."): v for k, v in norm.items()}).train.accumulate == 2


def test_experts_and_base_must_agree(plain):
    assert words(plain, model__num_experts=3).startswith(
        "model.num_experts=3 does not go with objective.base=cross_entropy"
    )


# ---- stage 2


def test_a_run_without_stage_2_is_written_as_before_there_was_one(plain):
    assert plain.stage2 is None and plain.epochs == plain.train.epochs
    assert "stage2" not in plain.to_dict() and "stage2" not in plain.to_yaml()
    assert not any(key.startswith("stage2") for key in plain.to_flat())
    assert plain.replace({"stage2.options.crt.epochs": 3}).replace({"stage2": "null"}) == plain


def test_a_run_with_stage_2_reads_back_and_is_another_run(plain):
    run = plain.replace({"stage2.method": "tau_norm", "stage2.options.tau_norm.tau": "0.5,1"})
    assert run.stage2.options.tau_norm.tau == (0.5, 1.0) and run.epochs == 2
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run == RunConfig.from_flat(run.to_flat())
    assert plain.replace({"stage2": "on"}).stage2.method == "crt"


def test_wrong_keys_of_stage_2_are_named(plain):
    assert words(plain, stage2__method="cRT").startswith("stage2.method must be one of crt, dro, lws")
    assert words(plain, stage2__options__crt__lr=0).startswith("stage2.options.crt.lr must be a finite number > 0")
    assert words(plain, stage2__method="ncm", stage2__options__crt__lr=1) == (
        "stage2.options.crt has no effect with method='ncm': remove it or set stage2.method=crt."
    )


# ---- files


def test_children_inherit_and_replace(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "name: given\nseed: 4\nobjective: {terms: {dro: {radius: 2}, ifl: {num_envs: 3}}}\n"
    )
    (tmp_path / "b.yaml").write_text("base: a.yaml\nobjective: {terms: {dro: {weight: 0.1}, ifl: null}}\n")
    run = load_run(str(tmp_path / "b.yaml"))
    assert (run.name, run.seed) == ("b", 4)
    assert (run.objective.terms.dro.radius, run.objective.terms.dro.weight) == (2.0, 0.1)
    assert run.objective.terms.ifl is None


def test_a_file_of_ones_own_may_build_on_a_packaged_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: cifar100_lt_ce\ntrain: {epochs: 2}\n")
    run = load_run(str(tmp_path / "mine.yaml"))
    assert (run.name, run.train.epochs, run.data.imbalance_factor) == ("mine", 2, 100.0)


def test_a_circle_of_bases_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match="base goes round in a circle"):
        load_run(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", r"r.yaml:2: key 'seed' is given twice"),
        ("train:\n  epochs: 1\n  epochs: 2\n", r"r.yaml:3: key 'epochs' is given twice"),
        ("seed: [1\n", r"r.yaml:2: "),
        ("- a\n", "expected a mapping of keys to values, found list"),
        ("", "expected a mapping of keys to values, found NoneType"),
        ("seed: !!python/object/apply:os.getpid []\n", "could not determine a constructor"),
        ("base: [a, b]\n", "must be the name, path or URI of one recipe"),
        ("train: null\n", "train=None: train is a section"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_run(str(tmp_path / "r.yaml"))


def test_unknown_recipes_name_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"recipe='cifar100_lt_cee' is unknown. Did you mean cifar100_lt_ce"):
        load_run("cifar100_lt_cee")
    with pytest.raises(ConfigError, match=r"recipe file .*gone.yaml does not exist. Packaged: "):
        load_run(str(tmp_path / "gone.yaml"))


def test_a_recipe_is_read_from_a_uri(tmp_path):
    (tmp_path / "far.yaml").write_text("base: near.yaml\nseed: 3\n")
    (tmp_path / "near.yaml").write_text("train: {epochs: 7}\n")
    assert read_run(f"file://{tmp_path}/far.yaml")[0] == {"name": "far", "seed": 3, "train": {"epochs": 7}}


def test_a_loss_with_margins_on_cosines_needs_the_cosine_head() -> None:
    with pytest.raises(ConfigError, match=r"model.head=linear.*ldam.*Set model.head=cosine and model.cosine_scale=30"):
        load_run("cifar100_lt_ce", {"objective.base": "ldam"})
    assert load_run("cifar100_lt_ce", {"objective.base": "ldam", "model.head": "cosine", "model.cosine_scale": 30})


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("lt_finetune", "lt_finetune is a sweep, no recipe: ltcore tune --sweep lt_finetune"),
        (".", "is a folder, expected a recipe. Give a folder of images by --data"),
    ],
)
def test_what_is_no_recipe_says_what_it_is(recipe: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_run(f"{tmp_path}/" if recipe == "." else recipe)


def test_a_network_of_timm_without_its_beginning_is_told(plain):
    pytest.importorskip("timm")
    assert words(plain, model__name="resnet18") == "model.name=resnet18 is a network of timm. Write timm:resnet18."
    assert words(plain, model__name="timm:") == "model.name=timm: is no network of the installed timm."
    assert words(plain, model__tune="partial:x").startswith("model.tune='partial:x': expected partial:K")


@pytest.mark.parametrize("text", ["0.5,0.4,0.3", "[0.5,0.4,0.3]", "[0.5, 0.4, 0.3]", [0.5, 0.4, 0.3]])
def test_a_list_may_stand_in_brackets_as_in_yaml(text: object) -> None:
    assert load_run("cifar100_lt_ce", {"data.mean": text}).data.mean == (0.5, 0.4, 0.3)


def test_half_a_bracket_is_no_list() -> None:
    with pytest.raises(ConfigError, match=r"data.mean=\[0.5: expected numbers such as"):
        load_run("cifar100_lt_ce", {"data.mean": "[0.5,0.4,0.3"})
