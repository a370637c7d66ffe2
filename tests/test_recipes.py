"""Every packaged recipe and sweep loads, and its header keeps the promise of one."""

import pytest

from ltcore.config.load import base_run, dump, load_run, load_sweep, override
from ltcore.config.schema import RunConfig
from ltcore.config.show import run_tree
from ltcore.config.tree import header, packaged
from ltcore.objective.registry import STAGE2

RECIPES, SWEEPS = packaged("recipe"), packaged("sweep")


def test_what_the_package_brings():
    cifar = ("ce", "balanced_softmax", "logit_adjust", "ride", "sade", "dro", "lpa", "ifl", "lpa_dro_ifl")
    assert {"digits_glt_lpa_dro_ifl", *(f"cifar100_lt_{m}" for m in cifar)} <= set(RECIPES)
    assert "tune_lpa" in SWEEPS


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads(name):
    run = load_run(name)
    assert run.name == name
    assert run_tree(name) == dump(run), "what is shown, and compared with stored sweeps, is what runs"


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


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_loads_with_every_value_of_its_space(name):
    sweep = load_sweep(name)
    assert sweep.name == name
    assert base_run(sweep).objective.active_terms()


LDAM_SCHEDULE = (
    "ce",
    "balanced_softmax",
    "logit_adjust",
    "ldam_drw",
    "ride",
    "sade",
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


@pytest.mark.parametrize("method", ["paco", "paco_lpa"])
def test_the_schedule_of_paco(method):
    """400 epochs, SGD 0.05, 10 epochs of warm-up, x 0.1 at 320 and again at 360, decay 5e-4, two views."""
    run = load_run(f"cifar100_lt_{method}")
    optim, epochs = run.train.optim, run.train.epochs
    assert (epochs, run.train.batch_size, optim.lr, optim.weight_decay) == (400, 128, 0.05, 5e-4)
    assert (optim.warmup * epochs, [m * epochs for m in optim.milestones], optim.gamma) == (10, [320, 360], 0.1)
    assert (run.augment.view1, run.augment.view2) == ("autoaugment_cutout", "sim")


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


def test_every_method_of_stage_2_has_a_recipe_that_says_nothing_of_stage_1():
    runs = {name: load_run(name) for name in RECIPES}
    second = {name: run for name, run in runs.items() if run.stage2 is not None}
    assert {run.stage2.method for run in second.values()} == set(STAGE2)
    for name, run in second.items():
        assert override(RunConfig(name=name), {"stage2": dump(run)["stage2"]}) == run
        folder, _, first = run.stage2.from_run.rpartition("/")
        assert folder == "~/ltcore-runs" and runs[first].objective.base == "cross_entropy"
        assert first in " ".join(header(RECIPES[name]))


def test_the_demo_starts_every_term_by_a_fifth_of_training_and_mirrors_no_digit():
    run = load_run("digits_glt_lpa_dro_ifl")
    terms = run.objective.active_terms()
    assert set(terms) == {"lpa", "dro", "ifl"}
    assert all(term.start <= 0.2 for term in terms.values())
    assert run.augment.view1 == "crop" and run.augment.view2 == "sim_noflip"
