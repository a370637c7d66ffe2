"""Files of weights that somebody else made: what no network can compute with is one sentence that names the file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ltcore
from ltcore.errors import CheckpointError
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import StopRequested
from ltcore.training.stage2.source import resolved
from tests.training.runs import StopAfter, run, stage2_run, tiny_run


@pytest.fixture
def copy(stage1: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stage1, tmp_path / "copy"))


def with_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Every model.pt below the folder, as ``change`` gives it back."""
    for file in folder.rglob("model.pt"):
        torch.save(change(torch.load(file, weights_only=True)), file)


def one(value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {**weights, "heads.0.bias": value}


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "not finite": (one(torch.tensor([0.0, math.inf, 0.0, 0.0])), r"that are not finite \(heads.0.bias\)"),
    "no tensor": (one(5), r"that are not a plain tensor \(heads.0.bias\)"),
    "sparse": (one(torch.zeros(4).to_sparse()), "that are not a plain tensor"),
    "of one byte": (one(torch.zeros(4).to(torch.float8_e5m2)), "that are not a plain tensor"),
    "without end": (one(torch.zeros(1).expand(2**40)), "a tensor with more elements than numbers"),
    "a list": (lambda weights: list(weights.values()), "contains a list, expected names with weights"),
    "of another size": (one(torch.zeros(5)), r"\(heads.0.bias: \(5,\) there, \(4,\) expected; 1 in all\)"),
    "one too few": (
        lambda weights: {k: v for k, v in weights.items() if k != "heads.0.bias"},
        r"\(heads.0.bias: nothing there, \(4,\) expected; 1 in all\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_weights_that_are_none(copy: Path, kind: str, tiny_shards: str, tmp_path: Path) -> None:
    """In whatever way they come: by load (and evaluate.py), by train.init_from and by stage2.from_run."""
    change, words = DAMAGE[kind]
    with_weights(copy, change)
    with pytest.raises(CheckpointError, match=rf"{copy}/checkpoints/best-\d+/model.pt .*{words}"):
        ltcore.load(copy)
    for cfg in (tiny_run(train__init_from=str(copy)), stage2_run(copy, "ncm")):
        with pytest.raises(CheckpointError, match=words):
            run(cfg, tiny_shards, tmp_path / cfg.name)


def test_weights_that_are_missing(copy: Path) -> None:
    next(copy.rglob("best-*/model.pt")).unlink()
    with pytest.raises(CheckpointError, match=r"model.pt is missing. Use another checkpoint"):
        ltcore.load(copy)


@pytest.mark.parametrize(
    ("weight", "words"), [(torch.full((4,), math.nan), "not finite"), (torch.zeros(5), "there, .* expected")]
)
def test_a_state_to_continue_from(weight: Tensor, words: str, tiny_shards: str, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(tiny_run(), tiny_shards, tmp_path / "run", StopAfter(0))
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert found is not None
    state = torch.load(found.path / "state.pt", weights_only=True)
    (name,) = (name for name in state["step"] if name.endswith("heads.0.bias"))
    state["step"][name] = weight
    torch.save(state, found.path / "state.pt")
    with pytest.raises(CheckpointError, match=f"state.pt.*{words}"):
        run(tiny_run(), tiny_shards, tmp_path / "run")


@pytest.mark.parametrize("field", ["classes", "data_hash", "epoch", "step", "config"])
def test_a_record_without_a_field(copy: Path, field: str, tiny_shards: str, tmp_path: Path) -> None:
    for meta in copy.rglob("meta.json"):
        fields = json.loads(meta.read_text())
        del fields[field]
        meta.write_text(json.dumps(fields))
    for cfg in (tiny_run(train__init_from=str(copy)), stage2_run(copy, "ncm")):
        if (cfg.stage2, field) != (None, "data_hash"):  # weights alone may come from other data
            with pytest.raises(CheckpointError, match=rf"meta.json has no '{field}'"):
                run(cfg, tiny_shards, tmp_path / cfg.name)


def test_a_record_of_a_configuration_that_cannot_be(copy: Path) -> None:
    for meta in copy.rglob("meta.json"):
        fields = json.loads(meta.read_text())
        fields["config"]["model.num_experts"] = 20000
        meta.write_text(json.dumps(fields))
    for read in (lambda: ltcore.load(copy), lambda: resolved(stage2_run(copy, "ncm"))):
        with pytest.raises(CheckpointError, match=r"best-\d+/meta.json: model.num_experts must be in \[1, 64\]"):
            read()


def test_a_run_that_does_not_say_how_it_ended(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    del record["status"]
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        CheckpointError, match=r"copy/run.json: status is missing. .* give one of the run's checkpoints"
    ):
        resolved(stage2_run(copy, "ncm"))
