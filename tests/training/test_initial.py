"""Runs that start from the weights of another one, and DRO-LT's stages made of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from ltcore.config.load import load_run, override
from ltcore.config.schema import RunConfig
from ltcore.data.manifest import read_manifest, write_manifest
from ltcore.errors import CheckpointError, ConfigError
from ltcore.training import checkpoint as ckpt
from ltcore.training.fit import StopRequested
from tests.training.runs import TERMS, run, tiny_run
from tests.training.test_fit import StopAfter, assert_equal_runs, weights


@pytest.fixture(scope="module")
def first(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    run(tiny_run(train__epochs=1), tiny_shards, run_dir)
    return run_dir


def still(**changes: object) -> RunConfig:
    """One epoch in which the weights hardly move."""
    return tiny_run(train__epochs=1, train__optim__lr=1e-12, train__optim__weight_decay=0.0, **changes)


def test_the_weights_are_those_of_the_checkpoint(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    record = run(still(train__init_from=str(first), seed=5), tiny_shards, tmp_path / "run")
    best = ckpt.read(first)
    assert best.path.name.startswith("best-")
    for name, value in weights(tmp_path / "run").items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, best.model_state()[name], rtol=0, atol=1e-6)
    assert record["started_from"] == {"checkpoint": str(best.path), "epoch": 1, "step": best.meta["step"]}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["started_from"] == record["started_from"]


def test_averages_and_a_key_encoder_start_there_too(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    """With decay 1 the averaged network, which is what a checkpoint holds, stays where it began."""
    cfg = still(train__init_from=str(first), train__ema_decay=0.999999, model__key_decay=1.0, **TERMS, seed=5)
    run(cfg, tiny_shards, tmp_path / "run")
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert found is not None
    state, started = found.train_state(), ckpt.read(first).model_state()
    for copy in ("key", "average"):
        for name, value in started.items():
            if "running_" not in name and "num_batches" not in name:
                torch.testing.assert_close(state[copy][name], value, rtol=0, atol=1e-6)
    assert any(name.startswith("projection.") for name in state["key"]), "drawn by the seed: the checkpoint has none"


def test_a_resumed_run_does_not_start_again(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(train__init_from=str(first))
    run(cfg, tiny_shards, tmp_path / "straight")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "broken", StopAfter(0))
    record = run(cfg, tiny_shards, tmp_path / "broken")
    assert_equal_runs(tmp_path / "straight", tmp_path / "broken")
    assert record["started_from"]["epoch"] == 1


def test_a_frozen_classifier_stays_and_the_features_learn(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(train__init_from=str(first), train__freeze="classifier", train__optim__weight_decay=0.1, **TERMS)
    run(cfg, tiny_shards, tmp_path / "run")
    before, after = ckpt.read(first).model_state(), weights(tmp_path / "run")
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("heads."))
    assert not torch.equal(after["backbone.trunk.conv1.weight"], before["backbone.trunk.conv1.weight"])


def test_another_network_other_classes_or_nothing_is_refused(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    def refusal(uri: str = tiny_shards, **changes: object) -> str:
        with pytest.raises(CheckpointError) as caught:
            run(still(**{"train__init_from": str(first), **changes}), uri, tmp_path / "run")
        return str(caught.value)

    wider = refusal(model__name="resnet20")
    assert wider.startswith(
        f"train.init_from={first} holds another network (model.name: 'resnet8' there, 'resnet20' now)"
    )
    assert "model.head: 'linear' there, 'cosine' now" in refusal(model__head="cosine")
    renamed = Path(shutil.copytree(tiny_shards, tmp_path / "renamed"))
    manifest = read_manifest(str(renamed))
    write_manifest(dataclasses.replace(manifest, classes=("ape", *manifest.classes[1:])), str(renamed))
    assert "they must be the same, in the same order" in refusal(str(renamed))
    assert "does not exist" in refusal(train__init_from=str(tmp_path / "nothing"))
    damaged = Path(shutil.copytree(first, tmp_path / "damaged"))
    for meta in damaged.glob("checkpoints/*/meta.json"):
        meta.write_text(json.dumps({"schema": ckpt.SCHEMA, "step": 5}))
    assert "no network or no classes in it" in refusal(train__init_from=str(damaged))


def test_a_checkpoint_that_would_run_code_is_not_unpickled(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    evil = Path(shutil.copytree(first, tmp_path / "evil"))
    for file in evil.glob("checkpoints/*/model.pt"):
        torch.save({"weights": tmp_path}, file)  # any object beside tensors stands for one that does harm
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        run(still(train__init_from=str(evil)), tiny_shards, tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.freeze": "features", "train.init_from": "/first"}, r"train.freeze must be classifier or null"),
        ({"train.init_from": "runs/first"}, r"train.init_from must be an absolute path or a URI.*got 'runs/first'"),
        ({"train.freeze": "classifier"}, r"train.freeze=classifier needs init_from"),
        (
            {"train.freeze": "classifier", "train.init_from": "s3://bucket/runs/first", "objective.base": "paco"},
            r"train.freeze=classifier does not go with objective.base=paco",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RunConfig(name="plain"), keys)


def test_the_authors_stages_of_dro_lt(tiny_shards: str, tmp_path: Path) -> None:
    """Both recipes, one after the other, on the tiny data; the second one starts where the first one's results lie."""
    small = {
        "model.name": "resnet8",
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.precision": "fp32",
        "train.threads": 1,
        "tracking.wandb": False,
        "tracking.tensorboard": False,
        "augment.cutout_fraction": 0.5,
    }
    one, two = load_run("cifar100_lt_dro_ce", small), load_run("cifar100_lt_dro_features", small)
    assert two.train.init_from == f"~/ltcore-runs/{one.name}"
    assert (one.augment, one.model) == (two.augment, two.model)
    run(one, tiny_shards, tmp_path / "one")
    two = override(two, {"train.init_from": str(tmp_path / "one")})
    assert two.train.freeze == "classifier" and two.objective.terms.dro.start == 0
    record = run(two, tiny_shards, tmp_path / "two")
    assert record["last"]["train/dro"] > 0
    assert record["started_from"]["checkpoint"].startswith(str(tmp_path / "one"))
