"""Classifiers that begin at the class means: the rows, the copies, resume, ranks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.errors import ConfigError
from ltcore.training.context import StopRequested
from tests.ddp import run_ranks
from tests.training.heads import STILL, started
from tests.training.runs import TERMS, StopAfter, assert_equal_runs, run, stage2_run, tiny_run, weights

MEANS = {"model.head_init": "class_means"}


@pytest.fixture(scope="module")
def first(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, whose features others start from."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    run(tiny_run(train__epochs=1), tiny_shards, run_dir)
    return run_dir


@pytest.mark.parametrize("head", ["linear", "cosine", "tde"])
def test_the_rows_are_unit_class_means_and_nothing_else_changes(tiny_shards: str, head: str) -> None:
    found = started(tiny_run(**MEANS, model__head=head).to_dict(), tiny_shards)
    torch.testing.assert_close(found["net.heads.0.weight"], found["means"], rtol=1e-6, atol=1e-7)
    assert torch.allclose(found["net.heads.0.weight"].norm(dim=1), torch.ones(4))
    if head == "linear":
        assert not found["net.heads.0.bias"].any()
    for name, value in found.items():
        if name.startswith("net.backbone."):
            assert torch.equal(value, found[name.replace("net.", "drawn.")]), name
    plain = started(tiny_run(model__head=head).to_dict(), tiny_shards)
    assert torch.equal(plain["net.heads.0.weight"], plain["drawn.heads.0.weight"])


def test_means_are_of_whole_squares_where_evaluation_sees_crops(tiny_shards: str) -> None:
    whole, crops = (started(tiny_run(**MEANS, data__crop_fraction=f).to_dict(), tiny_shards) for f in (None, 0.5))
    assert torch.equal(crops["net.heads.0.weight"], whole["net.heads.0.weight"])
    assert not torch.allclose(crops["means"], whole["means"], atol=1e-3), "those of what evaluation sees"


def test_the_classifier_of_a_checkpoint_is_replaced(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(**MEANS, **STILL, train__init_from=str(first))
    record = run(cfg, tiny_shards, tmp_path / "run")
    state = weights(tmp_path / "run")
    assert torch.allclose(state["heads.0.weight"].norm(dim=1), torch.ones(4))
    assert torch.allclose(state["heads.0.bias"], torch.zeros(4), atol=1e-6)
    assert record["started_from"]["epoch"] == 1 and record["config"]["model.head_init"] == "class_means"


def test_averages_and_a_key_encoder_start_with_the_same_rows(tiny_shards: str) -> None:
    found = started(tiny_run(**MEANS, train__ema_decay=0.9, **TERMS, model__key_decay=0.9).to_dict(), tiny_shards)
    for copy in ("key", "average"):
        if f"{copy}.heads.0.weight" in found:
            assert torch.equal(found[f"{copy}.heads.0.weight"], found["net.heads.0.weight"]), copy
    assert "average.heads.0.weight" in found and "key.heads.0.weight" in found


def at_both_sizes(tree: dict[str, Any], uri: str) -> list[torch.Tensor]:
    return [started(tree, uri, size)["net.heads.0.weight"] for size in (1, 5)]


def test_two_ranks_begin_with_the_bits_of_one_where_the_features_do(tiny_shards: str) -> None:
    """Those of a batch of 3 may differ from those of a batch of 5 in the last bit; those of single images do not."""
    tree = tiny_run(**MEANS, model__head="cosine").to_dict()
    one = at_both_sizes(tree, tiny_shards)
    ranks = run_ranks(at_both_sizes, 2, tree, tiny_shards)
    for two in ranks:
        assert torch.equal(two[0], one[0])
        torch.testing.assert_close(two[1], one[1], rtol=1e-6, atol=1e-7)
    assert torch.equal(ranks[0][1], ranks[1][1])


def test_a_resumed_run_does_not_set_them_again(tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(**MEANS)
    run(cfg, tiny_shards, tmp_path / "straight")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "broken", StopAfter(0))
    run(cfg, tiny_shards, tmp_path / "broken")
    assert_equal_runs(tmp_path / "straight", tmp_path / "broken")


def test_stage_2_takes_such_a_run_and_no_such_key(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(**MEANS, train__epochs=1), tiny_shards, tmp_path / "first")
    second = run(stage2_run(tmp_path / "first", "ncm"), tiny_shards, tmp_path / "ncm")
    assert second["config"]["model.head_init"] == "class_means"
    with pytest.raises(ConfigError, match=r"model.head_init=class_means contradicts stage2.from_run=.*it is random"):
        run(stage2_run(first, "ncm", model__head_init="class_means"), tiny_shards, tmp_path / "other")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.head_init": "zero"}, r"model.head_init must be .*random.*class_means.*got 'zero'"),
        (
            {**MEANS, "objective.base": "sade", "model.num_experts": 3},
            r"model.head_init=class_means needs num_experts=1, got 3",
        ),
        (
            {**MEANS, "train.init_from": "/run", "train.freeze": "classifier"},
            r"model.head_init=class_means does not go with train.freeze=classifier",
        ),
    ],
)
def test_what_it_does_not_go_with_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_run(**keys)
