import pytest

from ltcore.config.load import base_run, check_sweep, grace_fraction, load_sweep
from ltcore.config.recipes import packaged
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError


def checked(*words):
    config = read_sweep(*words)
    load_sweep(config)
    return config


def words(**overrides):
    with pytest.raises(ConfigError) as caught:
        checked("tune_lpa", {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


def test_the_packaged_sweep_and_its_overrides():
    sweep = checked("tune_lpa", {"sweep.num_trials": "4", "train.epochs": "3", "sweep.name": "mine"})
    assert (sweep.name, sweep.num_trials, sweep.recipe) == ("mine", 4, "digits_glt_lpa_dro_ifl")
    assert {key: str(spec) for key, spec in sweep.space.items()} == {
        "objective.terms.lpa.weight": "log:0.1,3.0",
        "objective.terms.dro.radius": "log:0.25,4.0",
        "objective.terms.ifl.num_envs": "choice:2,3,4",
    }
    assert base_run(sweep).train.epochs == 3
    assert sweep.to_dict()["space"]["objective.terms.dro.radius"] == "log:0.25,4.0"


def test_the_space_is_edited_from_the_command_line():
    sweep = checked(
        "tune_lpa",
        {
            "sweep.space.objective.terms.lpa.weight": "null",
            "sweep.space.train.optim.lr": "log:0.01,1",
            "objective.terms.lpa.weight": "0.3",
        },
    )
    assert list(sweep.space) == ["objective.terms.dro.radius", "objective.terms.ifl.num_envs", "train.optim.lr"]
    assert base_run(sweep).objective.terms.lpa.weight == 0.3


def test_the_name_of_a_sweep_is_its_file(tmp_path):
    (tmp_path / "lr.yaml").write_text("recipe: cifar100_lt_ce\nspace: {train.optim.lr: {log: [1e-3, 1]}}\n")
    assert checked(str(tmp_path / "lr.yaml")).name == "lr"


def test_both_ends_of_a_range_are_tried_before_anything_starts():
    text = words(sweep__space__objective__terms__dro__radius="uniform:-1,1")
    assert text == (
        "sweep.space.objective.terms.dro.radius=uniform:-1,1 does not go with recipe digits_glt_lpa_dro_ifl: "
        "objective.terms.dro.radius must be a finite number >= 0, got -1.0."
    )
    text = words(sweep__space__objective__terms__ifl__num_envs="int:1,9")
    assert "objective.terms.ifl.num_envs must be in [1, 4], got 9" in text
    text = words(sweep__space__train__epochs="uniform:1,3")
    assert "train.epochs=1.8: expected a whole number" in text


def test_a_grace_period_before_the_last_term_begins_is_refused_with_both_numbers():
    assert words(sweep__grace_fraction="0.1").startswith(
        "sweep.grace_fraction=0.1 is shorter than objective.terms.ifl.start=0.2: trials would be stopped before that term"
    )
    text = words(sweep__grace_fraction="0.25", sweep__space__objective__terms__dro__start="choice:0.1,0.4")
    assert "sweep.grace_fraction=0.25 is shorter than objective.terms.dro.start=0.4" in text


def test_the_grace_period_waits_for_the_last_term_by_itself():
    later = {"sweep.space.objective.terms.dro.start": "choice:0.1,0.4"}
    for overrides, expected in [({}, 0.25), (later, 0.4)]:
        sweep = checked("tune_lpa", overrides | {"sweep.grace_fraction": "null"})
        assert sweep.grace_fraction is None and grace_fraction(sweep, base_run(sweep)) == expected
    assert grace_fraction(checked("tune_lpa", {"sweep.grace_fraction": "0.7"}), base_run(sweep)) == 0.7


@pytest.mark.parametrize("recipe", packaged("recipe"))
def test_every_recipe_of_a_first_stage_takes_the_main_sweep(recipe):
    """Without further words, and at its own length: time budget and grace period are the digits'."""
    overrides = {"sweep.recipe": recipe, "sweep.name": "mine"}
    if base_run(read_sweep("tune_lpa", overrides)).stage2 is not None:
        with pytest.raises(ConfigError, match="a sweep trains stage 1"):
            checked("tune_lpa", overrides)
        return
    if base_run(read_sweep("tune_lpa", overrides)).objective.base == "bbn":
        with pytest.raises(ConfigError, match=rf"does not go with recipe {recipe}: .* mixes the features of two"):
            checked("tune_lpa", overrides)
        return
    if base_run(read_sweep("tune_lpa", overrides)).augment.mixes:
        with pytest.raises(ConfigError, match=r"augment.mixup_alpha=1.0 does not go with objective.terms.lpa"):
            checked("tune_lpa", overrides)
        return
    if base_run(read_sweep("tune_lpa", overrides)).train.sampling != "natural":
        with pytest.raises(ConfigError, match=r"train.sampling=class_aware does not go with objective.terms.ifl"):
            checked("tune_lpa", overrides)
        return
    sweep = checked("tune_lpa", overrides)
    assert grace_fraction(sweep, base_run(sweep)) < 1
    digits = recipe == "digits_glt_lpa_dro_ifl"
    assert (sweep.budget_s is not None, sweep.grace_fraction) == (digits, 0.5 if digits else None)
    assert checked("tune_lpa", overrides | {"sweep.budget_s": "60"}).budget_s == 60


def test_members_of_a_population_do_not_stop_early():
    mutable = {"sweep.search": "pbt", "sweep.mutable": "objective.terms.lpa.weight"}
    for patience in ({"train.patience": 3}, {"sweep.space.train.patience": "int:2,5"}):
        with pytest.raises(ConfigError, match=r"train\.patience=\w+ does not go with sweep\.search=pbt"):
            checked("tune_lpa", mutable | patience)
        assert checked("tune_lpa", patience)


@pytest.mark.parametrize(
    ("key", "spec", "why"),
    [
        (
            "model.weights",
            "choice:auto,null",
            "the sweep has model.weights=auto among the values that it varies, expected",
        ),
        (
            "train.least_batches",
            "choice:4,8",
            "the sweep varies train.least_batches, which decides the batch size once",
        ),
    ],
)
def test_what_is_decided_when_a_sweep_begins_is_not_varied(key, spec, why):
    with pytest.raises(ConfigError, match=f"^{why}"):
        checked("tune_lpa", {"sweep.recipe": "folder", f"sweep.space.{key}": spec})
    variant = {"sweep.recipe": "folder_small", f"sweep.variants.lpa.{key}": spec.removeprefix("choice:").split(",")[0]}
    with pytest.raises(ConfigError, match=f"^{why}"):
        checked("compare_methods", variant)


def test_pbt_has_no_grace_period():
    mutable = {"sweep.search": "pbt", "sweep.mutable": "objective.terms.lpa.weight", "sweep.grace_fraction": "0.1"}
    sweep = checked("tune_lpa", mutable)
    assert sweep.mutable == ("objective.terms.lpa.weight",)
    check_sweep(sweep, base_run(sweep))


@pytest.mark.parametrize(
    ("key", "spec", "why"),
    [
        ("objective.terms.ifl.num_envs", "choice:2,3", "only numbers of losses and optimizer"),
        ("train.ema_decay", "uniform:0,0.9", "only numbers of losses and optimizer"),
        ("train.optim.layer_decay", "uniform:0.5,0.9", "only numbers of losses and optimizer"),
        ("train.optim.backbone_lr_factor", "log:0.01,1", "at 1 the optimizer has fewer groups"),
        ("objective.terms.lpa.weight", "uniform:0,1", "one of the values of uniform:0,1 switches its term off"),
    ],
)
def test_what_population_based_training_may_not_change(key, spec, why):
    with pytest.raises(ConfigError, match=f"^sweep.mutable holds {key}: {why}"):
        checked("tune_lpa", {"sweep.search": "pbt", "sweep.mutable": key, f"sweep.space.{key}": spec})


def test_wrong_keys_are_named():
    assert words(sweep__spaces="1") == "sweep.spaces: unknown key. Did you mean sweep.space? (ltcore keys sweep)"
    assert words(sweep__space__objective__terms__lpa__wight="log:0.1,1").startswith(
        "objective.terms.lpa.wight: unknown key. Did you mean objective.terms.lpa.weight?"
    )
    assert words(objective__terms__lpa__weight="0.1").startswith(
        "sweep.space and overrides both set objective.terms.lpa.weight; to fix it for all trials, take it out with "
    )
    assert words(sweep__num_trials="x").startswith("sweep.num_trials=x: expected a whole number")
    assert words(sweep__num_trials="0") == "sweep.num_trials must be >= 1, got 0."
    assert words(sweep__space="log:1,2").startswith("sweep.space=log:1,2: give single keys, sweep.space.<key>=")
    assert words(sweep__recipe="nope").startswith("recipe='nope' is unknown.")


def test_a_space_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text("recipe: cifar100_lt_ce\nspace: [train.optim.lr]\n")
    with pytest.raises(ConfigError, match=r"^sweep.space=\['train.optim.lr'\] must map dotted keys to values"):
        checked(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize("off", ["null", "None"])
def test_a_term_that_is_off_is_not_switched_on_by_the_space(off):
    with pytest.raises(
        ConfigError, match=r"switch objective\.terms\.lpa off and space varies objective\.terms\.lpa\.weight.*=null"
    ):
        read_sweep("tune_lpa", {"objective.terms.lpa": off})
    with pytest.raises(ConfigError, match=r"space varies objective\.terms\.lpa and .*lpa\.weight, which is inside"):
        read_sweep("tune_lpa", {"sweep.space.objective.terms.lpa": "choice:on,null"})
    without = {"objective.terms.lpa": off, "sweep.space.objective.terms.lpa.weight": "null"}
    assert not [key for key in read_sweep("tune_lpa", without).space if key.startswith("objective.terms.lpa")]


def test_a_key_inside_of_a_term_that_the_file_switches_off_is_refused():
    """It would switch the term on in every row, under the names of rows without it."""
    with pytest.raises(
        ConfigError, match=r"switch objective\.terms\.dro off and set objective\.terms\.dro\.radius"
    ) as refused:
        read_sweep("compare_methods", {"objective.terms.dro.radius": "0.5"})
    assert "sweep.variants.NAME.objective.terms.dro.radius" in str(refused.value)
    own = "sweep.variants.dro.objective.terms.dro.radius"
    assert read_sweep("compare_methods", {own: "0.5"}).variants["dro"]["objective.terms.dro.radius"] == "0.5"
    everywhere = read_sweep("compare_methods", {"objective.terms.dro": "on", "objective.terms.dro.radius": "0.5"})
    assert everywhere.overrides["objective.terms.dro"] == "on"


def test_a_term_whose_key_the_file_sets_can_be_switched_off(tmp_path):
    """What is said last is applied last, so it stays off."""
    (tmp_path / "s.yaml").write_text(
        "recipe: cifar100_lt_lpa\noverrides: {objective.terms.lpa.weight: 0.3}\nspace: {train.optim.lr: 'choice:0.1,0.2'}\n"
    )
    sweep = read_sweep(str(tmp_path / "s.yaml"), {"objective.terms.lpa": "null"})
    assert base_run(sweep).objective.terms.lpa is None
    (tmp_path / "v.yaml").write_text(
        "recipe: folder_small\nsearch: variants\nvariants: {a: {objective.terms.lpa: on, objective.terms.lpa.weight: 0.3}}\n"
    )
    sweep = read_sweep(str(tmp_path / "v.yaml"), {"sweep.variants.a.objective.terms.lpa": "null"})
    assert base_run(sweep).replace(sweep.variants["a"]).objective.terms.lpa is None


def test_a_number_of_trials_for_rows_that_are_all_trained_is_refused():
    with pytest.raises(ConfigError, match="num_trials=4 has no effect with search=variants"):
        read_sweep("compare_methods", {"sweep.num_trials": "4"})
    grid = {"sweep.num_trials": "4", "sweep.search": "grid"}
    with pytest.raises(ConfigError, match="num_trials=4 has no effect with search=grid, which tries every combination"):
        read_sweep("tune_lpa", grid)
