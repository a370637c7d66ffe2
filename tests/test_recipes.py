"""Every packaged recipe and sweep loads, its header keeps the promise of one, and every recipe trains."""

import functools
import io
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.config import load
from ltcore.config.load import load_sweep
from ltcore.config.recipes import header, packaged
from ltcore.config.schema import RunConfig
from ltcore.config.show import run_tree
from ltcore.config.sweep import read_sweep
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.source import Sample
from ltcore.objective.registry import STAGE2
from ltcore.reporting.results_table import PUBLISHED
from ltcore.training.build import build, num_views, stream_options
from ltcore.training.context import LocalContext
from ltcore.training.cost import dry_run_text
from ltcore.training.idle import idle_options
from ltcore.training.optim import build_optimizer
from tests.shards import write_dataset

RECIPES, SWEEPS = packaged("recipe"), packaged("sweep")
_as_it_is = functools.cache(load.load_run)


def load_run(name, overrides=None):
    """As the function of that name; what nothing overrides is read once, since most tests look at many recipes."""
    return load.load_run(name, overrides) if overrides else _as_it_is(name)


def test_what_the_package_brings():
    cifar = ("ce", "balanced_softmax", "logit_adjust", "ride", "sade", "dro", "lpa", "ifl", "lpa_dro_ifl")
    assert {"digits_glt_lpa_dro_ifl", *(f"cifar100_lt_{m}" for m in cifar)} <= set(RECIPES)
    large = {f"{data}_{m}" for data in ("imagenet_lt", "places_lt", "inat18") for m in cifar[:3]}
    assert {"folder", "folder_small", *large} <= set(RECIPES)
    assert {"tune_lpa", "compare_methods"} <= set(SWEEPS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads(name):
    run = load_run(name)
    assert run.name == name
    assert run_tree(name) == run.to_dict(), "what is shown, and compared with stored sweeps, is what runs"
    assert list(idle_options(run)) == []


@pytest.mark.parametrize(("name", "file"), [*RECIPES.items(), *SWEEPS.items()])
def test_header_promises(name, file):
    first, *lines = header(file)
    assert first.startswith(f"{name}: ")
    promises = {line.split()[0]: line for line in lines if line and not line.startswith(" ")}
    pipeline = "train.py" if name in RECIPES else "tune_lpa.py"
    assert f"python pipelines/{pipeline}" in promises["run"]
    assert name not in RECIPES or name in promises["run"]
    wanted = {"run", "expect", "cost", "hardware"} | ({"paper"} if name in RECIPES else set())
    assert wanted <= set(promises)
    assert all(len(promises[word]) > len(word) + 10 for word in wanted)


def test_a_header_that_refers_to_another_finds_its_line():
    lines = {name: header(file) for name, file in (RECIPES | SWEEPS).items()}
    said = {
        name: {line.split()[0] for line in each if line and not line.startswith(" ")} for name, each in lines.items()
    }
    refers = [
        (name, *found.groups())
        for name, each in lines.items()
        for line in each
        if (found := re.match(r"(\w+) +as (\w+)", line)) and found[2] in said
    ]
    assert len(refers) > 50
    assert [each for each in refers if each[1] not in said[each[2]]] == []


@pytest.mark.parametrize("name", SWEEPS)
def test_the_cost_of_a_sweep_counts_its_rows(name):
    for rows in re.findall(r"^cost +(\d+) rows", "\n".join(header(SWEEPS[name])), re.MULTILINE):
        assert int(rows) == len(read_sweep(name).variants)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("cifar100_lt_")])
def test_published_values_say_for_which_imbalance(name):
    text = " ".join(header(RECIPES[name]))
    found = PUBLISHED.search(text)
    assert found is not None or "no published number" in text
    if found is not None:
        assert found[1].startswith("100"), "the factor of the recipe comes first"
        assert len(found[1].split(" / ")) == len(found[2].split(" / "))


def test_the_main_sweep_loads_with_every_value_of_its_space():
    sweep = read_sweep("tune_lpa")
    assert sweep.name == "tune_lpa"
    assert load_sweep(sweep).objective.active_terms()


@pytest.mark.parametrize("recipe", ["folder", "folder_small", "cifar100_lt_lpa_dro_ifl", "imagenet_lt_ce"])
def test_the_methods_are_compared_on_any_recipe(recipe):
    sweep = read_sweep("compare_methods", {"sweep.recipe": recipe})
    base = load_sweep(sweep)
    assert not base.objective.active_terms(), "the terms of the recipe are in none of them"
    second = ("crt", "dro_ncm", "dro_crt")
    runs = {name: base.replace(changes) for name, changes in sweep.variants.items() if name not in second}
    terms = {name: tuple(run.objective.active_terms()) for name, run in runs.items()}
    assert {name: found for name, found in terms.items() if found} == {
        "lpa": ("lpa",),
        "lpa_no_neighbors": ("lpa",),
        "dro": ("dro",),
        "ifl": ("ifl",),
    }
    assert runs["ldam_drw"].objective.base_options == load_run("cifar100_lt_ldam_drw").objective.base_options
    assert sweep.variants["crt"] == {"stage2.from_run": "ce", "stage2.method": "crt"}
    assert sweep.variants["dro_crt"] == {"stage2.from_run": "dro", "stage2.method": "crt"}
    assert sweep.variants["dro_ncm"] == {"stage2.from_run": "dro", "stage2.method": "ncm"}
    assert (len(sweep.variants), sweep.size) == (11, 33)


CLASSES = 4
SMALL_PX, LARGE_PX = 32, 64
"""The least that CIFAR networks and torchvision's take."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Generated JPEGs of 70 x 100 px, as in no recipe's canvas."""

    def samples():
        rng = np.random.default_rng(0)
        for n in range(4 * CLASSES):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (70, 100, 3), np.uint8)).save(out, "JPEG")
            yield Sample(f"k{n}", out.getvalue(), "jpg", n % CLASSES)

    uri = str(tmp_path_factory.mktemp("photographs") / "shards")
    write_dataset(
        uri,
        name="photographs",
        classes=[f"class{c}" for c in range(CLASSES)],
        attributes=[],
        splits={"train": samples(), "val": samples()},
        image_size=SMALL_PX,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
    )
    return uri


@pytest.mark.parametrize(
    "name",
    [
        # recipes for photographs take seconds each, in the largest networks
        pytest.param(name, marks=[pytest.mark.slow] if (load_run(name).data.image_size or 0) >= 112 else [])
        for name in RECIPES
        if load_run(name).stage2 is None
    ],
)
def test_recipe_trains(name, photographs):
    """Two steps of its own network and objective; between them memories are merged, so that every term acts."""
    overrides = {"train.batch_size": 4, "train.init_from": None, "train.freeze": None, "train.precision": "fp32"}
    large = load_run(name).data.image_size is not None
    overrides["data.image_size"] = LARGE_PX if large else SMALL_PX
    if load_run(name).model.ghost_batch is not None:
        overrides["model.ghost_batch"] = 2
    run = load_run(name, overrides)
    views = num_views(run)
    loader = make_loader(run.data, photographs, batch_size=run.train.batch_size, seed=0, **stream_options(run))
    parts = build(run, loader, LocalContext(torch.device("cpu")))
    optimizer, objective = build_optimizer(run.train.optim, parts.step), parts.step.objective
    assert bool({"key", "second"} & objective.needs) == (views == 2), "the reader is told before there is an objective"
    before = parts.step.net.heads[0].weight.clone()
    batches = loader.train_batches(0)
    for progress in (0.0, 0.9):
        raw = next(batches)
        assert (raw.boxes_VB4 is not None) == large, "large images are cropped by the reader"
        batch = parts.augment(raw, 0)
        assert batch.images_VBCHW.shape == (views, loader.rows_per_step, 3, *[overrides["data.image_size"]] * 2)
        loss, values, out = parts.step(batch, progress)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.observe(out, batch, progress)
        objective.merge(0.9)
    assert {"base", *run.objective.active_terms()} <= set(values) and all(v.isfinite() for v in values.values())
    assert not torch.equal(before, parts.step.net.heads[0].weight)
    loader.close()


@pytest.mark.parametrize("name", ["imagenet_lt_paco_lpa", "places_lt_dro", "cifar100_lt_ce"])
def test_a_dry_run_tells_capacity_and_cost(name, photographs):
    run = load_run(name, {"train.batch_size": 4, "data.image_size": LARGE_PX, "model.ghost_batch": None})
    text = dry_run_text(run, photographs)
    assert f"4 steps per epoch of 4, {run.train.epochs} epochs, {16 * run.train.epochs:,} images in all" in text
    assert f"{run.model.name} at 64 px" in text and "FLOP" in text and "Each worker holds" in text


@pytest.mark.parametrize(
    ("name", "network", "epochs", "batch", "rate", "decay", "weights"),
    [
        ("imagenet_lt", "resnext50_32x4d", 200, 256, 0.1, 5e-4, None),
        ("places_lt", "resnet152", 30, 128, 0.02, 5e-4, "auto"),
        ("inat18", "resnet50", 200, 256, 0.1, 1e-4, None),
    ],
)
def test_the_plain_settings_at_224_px(name, network, epochs, batch, rate, decay, weights):
    for method, base in (("ce", "cross_entropy"), ("balanced_softmax", None), ("logit_adjust", None)):
        run = load_run(f"{name}_{method}")
        optim = run.train.optim
        assert (run.model.name, run.model.weights, run.data.image_size) == (network, weights, 224)
        assert (run.train.epochs, run.train.batch_size, optim.lr, optim.weight_decay) == (epochs, batch, rate, decay)
        assert (optim.schedule, run.objective.base) == ("cosine", base or method)
        assert not run.objective.active_terms()


@pytest.mark.parametrize("data", ["imagenet_glt", "mscoco_glt"])
def test_the_settings_of_the_glt_benchmarks(data):
    """100 epochs of batches of 256 at 112 px, SGD 0.1 without momentum by cosine to 0, decay 5e-4."""
    ce, balanced, ifl = (load_run(f"{data}_{method}") for method in ("ce", "balanced_softmax", "ifl"))
    optim = ce.train.optim
    assert (ce.train.epochs, ce.train.batch_size, ce.data.image_size, ce.model.name) == (
        100,
        256,
        112,
        "resnext50_32x4d",
    )
    assert (optim.lr, optim.momentum, optim.weight_decay, optim.schedule, optim.warmup) == (
        0.1,
        0.0,
        5e-4,
        "cosine",
        0.0,
    )
    assert ce.augment.view1 == {"imagenet_glt": "rrc_flip", "mscoco_glt": "rrc_half_flip"}[data]
    assert (
        ce.train == balanced.train == ifl.train and balanced.objective.base == ifl.objective.base == "balanced_softmax"
    )
    term = ifl.objective.terms.ifl
    assert (term.start, list(term.milestones), term.num_envs, term.env_type) == (0.6, [0.8], 2, "intra")
    assert set(ifl.objective.active_terms()) == {"ifl"}


def test_the_recipes_of_cifar_100_glt_share_the_schedule_of_cifar_100_lt():
    plain = load_run("cifar100_lt_ce")
    for method in ("ce", "balanced_softmax", "ifl", "lff", "lpa_dro_ifl"):
        run = load_run(f"cifar100_glt_{method}")
        assert (run.train, run.model.name) == (plain.train, plain.model.name)
        assert (run.data.uri, run.data.imbalance_factor, run.data.val_per_class) == ("cifar100-glt", 50, 50)


LDAM_SCHEDULE = (
    "ce",
    "balanced_softmax",
    "logit_adjust",
    "ldam_drw",
    "dro",
    "lpa",
    "ifl",
    "lpa_dro_ifl",
)


@pytest.mark.parametrize("method", LDAM_SCHEDULE)
def test_the_published_cifar_schedule(method):
    """LDAM-DRW's recipe: 200 epochs, batch 128, SGD 0.1, 5 epochs of warm-up, x 0.01 at 160 and 180, decay 2e-4."""
    run = load_run(f"cifar100_lt_{method}")
    optim, epochs = run.train.optim, run.train.epochs
    assert (epochs, run.train.batch_size, run.model.name) == (200, 128, "resnet32")
    assert (optim.optimizer, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.1, 0.9, 2e-4)
    assert (optim.warmup * epochs, [m * epochs for m in optim.milestones], optim.gamma) == (5, [160, 180], 0.01)
    assert (run.data.uri, run.data.imbalance_factor, run.augment.view1) == ("cifar100", 100, "crop_flip")


@pytest.mark.parametrize(("method", "gamma"), [("ride", 0.01), ("sade", 0.1)])
def test_the_schedule_of_experts(method, gamma):
    """SADE's and RIDE's: as LDAM-DRW's, but Nesterov's momentum, decay 5e-4, rotations, and for SADE x 0.1."""
    run, plain = load_run(f"cifar100_lt_{method}"), load_run("cifar100_lt_ce")
    assert run.train.optim == replace(plain.train.optim, nesterov=True, weight_decay=5e-4, gamma=gamma)
    assert replace(run.train, optim=plain.train.optim) == plain.train
    assert run.augment.view1 == "crop_flip_rotate15"
    assert (run.model.num_experts, run.model.head, run.model.cosine_scale) == (3, "cosine", 30)
    assert method != "ride" or run.objective.base_options.ride.diversity_weight == 0.45


@pytest.mark.parametrize("method", ["paco", "paco_lpa", "paco_ghost32"])
def test_the_schedule_of_paco(method):
    """400 epochs, SGD 0.05, 10 epochs of warm-up, x 0.1 at 320 and again at 360, decay 5e-4, two views."""
    run = load_run(f"cifar100_lt_{method}")
    optim, epochs = run.train.optim, run.train.epochs
    assert (epochs, run.train.batch_size, optim.lr, optim.weight_decay) == (400, 128, 0.05, 5e-4)
    assert (optim.warmup * epochs, [m * epochs for m in optim.milestones], optim.gamma) == (10, [320, 360], 0.1)
    assert (run.augment.view1, run.augment.view2) == ("autoaugment_cutout", "sim")
    assert run.model.ghost_batch == (32 if method == "paco_ghost32" else None)


def test_the_authors_stages_of_dro_lt():
    """Stage 1 by that schedule; stage 2 as in their code: rate 0.005, decay 1e-4, 4 million images, a frozen classifier."""
    first, second = load_run("cifar100_lt_dro_ce"), load_run("cifar100_lt_dro_features")
    assert (first.train, first.objective) == (load_run("cifar100_lt_ce").train, load_run("cifar100_lt_ce").objective)
    assert first.augment == second.augment and first.augment.view1 == "autoaugment_cutout"
    optim, dro = second.train.optim, second.objective.terms.dro
    assert (optim.lr, optim.momentum, optim.weight_decay, optim.schedule) == (0.005, 0.9, 1e-4, "constant")
    assert abs(second.train.epochs * 10_847 / 4e6 - 1) < 0.01
    assert (dro.weight, dro.temperature, dro.slack, dro.denominator) == (1.0, 1.0, 1, "class")
    assert second.train.freeze == "classifier" and second.train.init_from.endswith(f"/{first.name}")
    assert second.train.batch_size // second.train.images_per_class == 32 and second.train.sampling == "class_aware"
    weighted = second.objective.base_options.cross_entropy
    assert (weighted.class_weights, weighted.weight_norm) == ("natural", "batch_sum")
    assert second.train.select == "val/ncm_top1"


@pytest.mark.parametrize(("name", "first"), [("imagenet_lt", "imagenet_lt_dro_ce"), ("inat18", "inat18_ce")])
def test_the_stages_of_dro_lt_at_224_px(name, first):
    """The second stage is that of CIFAR-100-LT but for its length; it begins with a network of its own kind."""
    second, small = load_run(f"{name}_dro_features"), load_run("cifar100_lt_dro_features")
    assert second.objective == small.objective and second.train.optim == small.train.optim
    shared = ("batch_size", "sampling", "images_per_class", "freeze")
    assert all(getattr(second.train, key) == getattr(small.train, key) for key in shared)
    assert second.train.init_from == f"~/ltcore-runs/{first}" and second.model == load_run(first).model
    assert second.train.select == ("val/ncm_top1" if second.data.val_per_class else "val/balanced_accuracy")
    third = load_run(f"{name}_dro_classifier")
    assert (third.stage2.from_run, third.stage2.method) == (f"~/ltcore-runs/{second.name}", "dro")


def test_the_ablation_of_dro_goes_with_any_recipe():
    for recipe in ("digits_glt_lpa_dro_ifl", "cifar100_lt_ce", "imagenet_lt_ce"):
        sweep = read_sweep("dro_ablation", {"sweep.recipe": recipe})
        base = load_sweep(sweep)
        rows = {n: changes for n, changes in sweep.variants.items() if "stage2.from_run" not in changes}
        started = {
            n: {"train.init_from": "/runs/no_dro"} for n, row in rows.items() if row.get("train.init_from") == "no_dro"
        }
        runs = {n: base.replace({**row, **started.get(n, {})}) for n, row in rows.items()}
        assert base.train.ncm and base.objective.base == "cross_entropy"
        without = ["no_dro", "no_dro_features"]
        assert [n for n, run in runs.items() if not run.objective.active_terms()] == without
        assert [*started] == ["features", "no_dro_features"]
        stage, control = runs["features"].to_dict(), runs["no_dro_features"].to_dict()
        assert stage["objective"].pop("terms") != control["objective"].pop("terms") and stage == control
        dro = {n: run.objective.terms.dro for n, run in runs.items() if n not in without}
        assert {term.radius_mode for term in dro.values()} == {"sqrt_n", "shared", "se", "learned_compat"}
        assert {n for n, term in dro.items() if term.layers} == {"shared_layers", "sqrt_n_layers", "learned_layers"}
        stages = {"features", "no_dro_features", "head", "no_dro_head"}
        retrained = {row["stage2.from_run"] for row in sweep.variants.values() if row.get("stage2.method") == "crt"}
        assert retrained == set(rows) - stages, "a balanced classifier beside every biased one"


@pytest.mark.parametrize("name", ["cifar100", "imagenet_lt", "places_lt", "inat18"])
def test_lift_plus_differs_from_lift_where_its_authors_say(name):
    """Squares that grow by the epoch in place of aspects and flips, text features, fewer epochs at twice the rate."""
    before, plus = load_run(f"{name}_lift"), load_run(f"{name}_lift_plus")
    assert (plus.augment.view1, plus.augment.crop_schedule, plus.model.head_init) == ("square_crop", "convex", "text")
    assert plus.augment.crop_from == "original" and plus.model.name == "timm:vit_base_patch16_clip_quickgelu_224"
    assert (before.model.tune, before.model.adaptformer.norm) == ("adaptformer", "own")
    assert (plus.train.epochs, plus.train.optim.lr) == ({"inat18": 15}.get(name, 5), 0.02)
    same = {"augment.view1": "rrc_flip", "augment.crop_schedule": "constant", "train.optim.lr": 0.01}
    same |= {
        "train.epochs": before.train.epochs,
        "model.head_init": "class_means",
        "model.weights": before.model.weights,
    }
    assert replace(plus.replace({**same, "model.name": before.model.name}), name=before.name) == before


@pytest.mark.parametrize("name", ["imagenet_lt_lift", "places_lt_lift", "inat18_lift"])
def test_lifts_numbers_are_those_of_text_features(name):
    """Beside them stands the key that gives them, and tables do not take them for what the recipe reaches as it is."""
    text = " ".join(header(RECIPES[name]))
    assert load_run(name).model.head_init == "class_means" and PUBLISHED.search(text) is None
    assert re.search(r"test top-1 with model\.head_init=text.*: [\d.]+ published with five crops, [\d.]+ without", text)


@pytest.mark.parametrize("recipe", ["digits_glt_lpa_dro_ifl", "cifar100_glt_lpa_dro_ifl"])
def test_the_ladder_of_glt_has_the_authors_weight_of_dro_and_one_to_four_environments(recipe):
    sweep = read_sweep("glt_ladder", {"sweep.recipe": recipe})
    base = load_sweep(sweep)
    rows = {n: row for n, row in sweep.variants.items() if "stage2.from_run" not in row}
    runs = {
        n: base.replace({**row, **({"train.init_from": "/runs/ce"} if n == "dro_features" else {})})
        for n, row in rows.items()
    }
    dro = {n: run.objective.terms.dro.weight for n, run in runs.items() if run.objective.terms.dro}
    together = base.objective.terms.dro.weight
    alone = dict.fromkeys(("dro", "dro_features", "dro_balanced"), 1)
    assert dro == {**alone, "lpa_dro_ifl": together, "lpa_dro_ifl_no_neighbors": together}
    assert runs["lpa_dro_ifl_no_neighbors"].objective.terms.lpa.neighbor_mass == 0
    assert [runs[f"ifl_e{n}"].objective.terms.ifl.num_envs for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_the_ablation_of_lpa_changes_one_thing_per_row():
    """But for the heavy rows and ``half``, whose controls stand beside them."""
    sweep = read_sweep("lpa_ablation", {})
    base = load_sweep(sweep)
    default = base.objective.terms.lpa
    runs = {n: base.replace(changes) for n, changes in sweep.variants.items()}
    assert [n for n, run in runs.items() if run.objective.terms.lpa is None] == ["none"]
    rows = {n: run.objective.terms.lpa for n, run in runs.items() if n != "none"}
    assert [n for n, row in rows.items() if row == default] == ["lpa"]
    changed = {
        n: {f.name for f in fields(default) if getattr(row, f.name) != getattr(default, f.name)}
        for n, row in rows.items()
    }
    two = {"heavy_no_neighbors": {"weight", "neighbor_mass"}, "half": {"threshold", "neighbor_mass"}}
    assert {n: keys for n, keys in changed.items() if len(keys) > 1} == two
    assert rows["heavy_no_neighbors"].weight == rows["heavy"].weight > default.weight


def test_every_method_of_stage_2_has_a_recipe_that_says_nothing_of_stage_1():
    runs = {name: load_run(name) for name in RECIPES}
    second = {name: run for name, run in runs.items() if run.stage2 is not None}
    assert {run.stage2.method for run in second.values()} == set(STAGE2)
    for name, run in second.items():
        assert RunConfig(name=name).replace({"stage2": run.to_dict()["stage2"]}) == run
        folder, _, first = run.stage2.from_run.rpartition("/")
        assert folder == "~/ltcore-runs" and runs[first].objective.base == "cross_entropy"
        assert first in " ".join(header(RECIPES[name]))


@pytest.mark.parametrize(
    ("name", "network", "temperature", "decay", "views"),
    [
        ("imagenet_lt_paco", "resnet50", 0.2, 5e-4, ("rrc_rand", "rrc_sim")),
        ("imagenet_lt_paco_x50", "resnext50_32x4d", 0.07, 5e-4, ("rrc_rand_stack", "rrc_sim")),
        ("inat18_paco", "resnet50", 0.2, 1e-4, ("rrc_rand", "rrc_sim")),
        ("places_lt_paco", "resnet152", 0.2, 5e-4, ("rrc_sim", "rrc_sim")),
    ],
)
def test_the_large_settings_of_paco(name, network, temperature, decay, views):
    """Batch 128 in groups of 32, SGD 0.02 by cosine, a queue of 8,192 vectors of length 128, sample weight 0.05."""
    run = load_run(name)
    optim, paco = run.train.optim, run.objective.base_options.paco
    assert (run.model.name, run.model.ghost_batch, run.model.projection_dim) == (network, 32, 128)
    assert (paco.sample_weight, paco.temperature, paco.queue_size) == (0.05, temperature, 8192)
    schedule = "cosine_after_warmup"
    assert (optim.lr, optim.momentum, optim.weight_decay, optim.schedule) == (0.02, 0.9, decay, schedule)
    epochs, warmup = (30, 5) if name.startswith("places") else (400, 10)
    assert (run.train.epochs, round(optim.warmup * epochs), run.train.batch_size) == (epochs, warmup, 128)
    assert (run.augment.view1, run.augment.view2, run.augment.crop_from, run.data.image_size) == (
        *views,
        "original",
        224,
    )
    randaugment = (run.augment.randaugment_variant, run.augment.randaugment_ops, run.augment.randaugment_magnitude)
    assert randaugment == (("timm", 2, 30) if "rrc_rand" in views[0] else ("paper", 2, 9))


@pytest.mark.parametrize(
    ("name", "parent", "num_attributes", "num_classes"),
    [
        ("imagenet_lt_paco_lpa", "imagenet_lt_paco_x50", 512, 1000),
        ("inat18_paco_lpa", "inat18_paco", 1024, 8142),
        ("places_lt_paco_lpa", "places_lt_paco", 256, 365),
    ],
)
def test_the_large_settings_of_lpa(name, parent, num_attributes, num_classes):
    """PaCo and the term, which has PaCo's temperature and as long a queue, and keeps at most 0.6 GiB of vectors to cluster."""
    run, base = load_run(name), load_run(parent)
    lpa, paco = run.objective.terms.lpa, run.objective.base_options.paco
    assert (run.train, run.augment, run.model) == (base.train, base.augment, base.model)
    assert paco == base.objective.base_options.paco
    assert (lpa.temperature, lpa.queue_size) == (paco.temperature, paco.queue_size)
    assert (lpa.weight, lpa.num_attributes) == (1.0, num_attributes)
    assert 0.3 < num_classes * lpa.reservoir_per_class * 2048 * 4 / 2**30 < 0.6


def test_the_demo_starts_every_term_by_a_fifth_of_training_and_mirrors_no_digit():
    run = load_run("digits_glt_lpa_dro_ifl")
    terms = run.objective.active_terms()
    assert set(terms) == {"lpa", "dro", "ifl"}
    assert all(term.start <= 0.2 for term in terms.values())
    assert run.augment.view1 == "crop" and run.augment.view2 == "sim_noflip"
