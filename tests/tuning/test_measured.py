"""What is measured for a whole sweep is the costliest of its runs, with images as its weights expect them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ltcore.config.load import base_run
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import SweepConfig, read_sweep
from ltcore.data.shards.manifest import Manifest, read_manifest
from ltcore.errors import ConfigError
from ltcore.models.weights import IMAGENET
from ltcore.tuning import budget
from ltcore.tuning.measured import as_started, measured_run

DRAWN = {"model.weights": "null", "train.batch_size": "8"}


@pytest.fixture(scope="module")
def manifest(tiny_shards: str) -> Manifest:
    return read_manifest(tiny_shards)


def search(**space: str) -> SweepConfig:
    keys = {f"sweep.space.{key.replace('__', '.')}": value for key, value in space.items()}
    lr = {"sweep.space.train.optim.lr": "log:0.1,1", "sweep.budget_s": "1"}
    return read_sweep("tune_lpa", {**DRAWN, **lr, **keys, "sweep.recipe": "folder_small"})


def measured(sweep: SweepConfig, manifest: Manifest) -> RunConfig:
    return measured_run(sweep, base_run(sweep), manifest)


def test_a_sweep_of_one_network_measures_its_recipe(manifest: Manifest) -> None:
    sweep = read_sweep("tune_lpa", {"train.batch_size": "8"})
    base = base_run(sweep)
    assert measured_run(sweep, base, manifest) is base


def test_the_costliest_network_and_image_size_are_measured_together(manifest: Manifest) -> None:
    found = measured(search(model__name="choice:resnet8,resnet20", data__image_size="choice:16,40"), manifest)
    assert (found.model.name, found.data.image_size) == ("resnet20", 40)


def test_terms_that_the_space_switches_on_are_measured(manifest: Manifest) -> None:
    found = measured(
        search(objective__terms__lpa__weight="log:0.1,3", objective__terms__ifl__num_envs="choice:1,2"), manifest
    )
    assert sorted(found.objective.active_terms()) == ["dro", "ifl", "lpa"] and found.model.name == "resnet32"


def test_a_term_that_is_off_at_the_last_value_is_measured_switched_on(manifest: Manifest) -> None:
    keys = {f"sweep.space.{key}": "null" for key in read_sweep("tune_lpa").space}
    words = {**DRAWN, **keys, "sweep.recipe": "folder_small", "sweep.space.objective.terms.lpa.weight": "choice:1,0"}
    found = measured(read_sweep("tune_lpa", words), manifest)
    assert list(found.objective.active_terms()) == ["lpa"]


def test_terms_that_do_not_go_together_are_measured_alone(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RunConfig.replace

    def alone(self: RunConfig, changes: dict[str, Any]) -> RunConfig:
        found = whole(self, changes)
        if len(found.objective.active_terms()) > 1:
            raise ConfigError("one at a time")
        return found

    monkeypatch.setattr(RunConfig, "replace", alone)
    assert list(measured(search(), manifest).objective.active_terms()) == ["lpa"], "which has a key network"


@pytest.mark.parametrize(
    ("key", "values", "costly", "others"),
    [
        ("objective.base", "choice:paco,cross_entropy", "paco", {"model.projection_dim": "8"}),
        ("model.num_experts", "choice:4,2", 4, {"sweep.recipe": "cifar100_lt_ride"}),
        ("model.tune", "choice:full,head", "full", {"objective.base": "cross_entropy"}),
    ],
)
def test_whatever_decides_about_operations_is_measured_at_its_costliest(
    manifest: Manifest, key: str, values: str, costly: Any, others: dict[str, str]
) -> None:
    own = {f"sweep.space.{swept}": "null" for swept in read_sweep("tune_lpa").space}
    words = {**DRAWN, **own, "sweep.recipe": "folder_small", **others, f"sweep.space.{key}": values}
    assert measured(read_sweep("tune_lpa", words), manifest).to_flat()[key] == costly


def test_of_compared_methods_the_costliest_is_measured(manifest: Manifest) -> None:
    words = {"sweep.recipe": "folder_small", "train.batch_size": "8", "model.weights": "null"}
    assert "lpa" in measured(read_sweep("compare_methods", words), manifest).objective.active_terms()


def test_images_are_measured_as_the_weights_expect_them(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which makes the smaller network, on images of 224 px, the costliest."""
    monkeypatch.setattr(
        "ltcore.tuning.measured.training_flops", lambda run, data: run.data.image_size or data.image_size
    )
    words = {"sweep.recipe": "folder_small", "train.batch_size": "8"}
    words["sweep.variants.lpa.model.name"] = "resnet50"
    sweep = read_sweep("compare_methods", {**words, "sweep.variants.lpa.model.weights": "default"})
    found = measured(sweep, manifest)
    (started,) = as_started(sweep, [base_run(sweep).replace(sweep.variants["lpa"])])
    assert started.data.image_size == 224 and started.data.mean == IMAGENET.mean
    assert (found.model.name, found.data.image_size, found.data.mean) == ("resnet50", 224, IMAGENET.mean)


def test_a_time_budget_is_cut_by_the_measured_run(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, seen = search(model__name="choice:resnet8,resnet20"), list[str]()
    setup: Any = SimpleNamespace(
        sweep=sweep,
        base=base_run(sweep),
        data_uri="data",
        images_per_epoch=8,
        cluster=SimpleNamespace(local=True),
        placement=SimpleNamespace(concurrent=2, scaling=SimpleNamespace(cpus_per_worker=1, gpus_per_worker=0)),
    )
    monkeypatch.setattr(budget, "read_manifest", lambda _: manifest)

    def rate(cfg: RunConfig, *_: object, **__: object) -> float:
        seen.append(cfg.model.name)
        return 1.0

    monkeypatch.setattr(budget, "images_per_s", rate)
    budget.planned_trials(setup, None, lambda _: None)
    assert seen == ["resnet20"]
