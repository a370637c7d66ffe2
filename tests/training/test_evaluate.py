"""What an evaluation knows of single samples, on one and on two ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.source import Sample
from ltcore.errors import DataError
from ltcore.training.evaluate import Evaluator
from tests.conftest import make_tiny, png
from tests.confusions import pairs_of
from tests.ddp import run_ranks
from tests.shards import write_dataset
from tests.training.runs import tiny_run

CLASSES = 4


def predicted(index: Any) -> Any:
    """The class that is predicted for the sample of an index."""
    return (index * 7 // 3) % CLASSES


class Scripted(Evaluator):
    """Predicts by the index of a sample, so that the truth is known without a network."""

    def outputs(self, split: str) -> Iterator[tuple[Batch, ModelOutput]]:
        for batch in self.loader.eval_batches(split, self.batch_size):
            logits_BC = one_hot(predicted(batch.index_B), CLASSES).float()
            yield batch, ModelOutput(logits_BC, logits_BC)


@contextlib.contextmanager
def scripted(uri: str, **changes: Any) -> Iterator[Scripted]:
    """Evaluator of data at ``uri``; keys as for ``tiny_run``."""
    with contextlib.closing(make_loader(tiny_run(**changes).data, uri, batch_size=8, seed=0)) as loader:
        net: Any = torch.nn.Identity()
        yield Scripted(net=net, loader=loader, device=torch.device("cpu"), batch_size=3, normalize=lambda batch: batch)


def _confused(uri: str) -> list[dict[str, Any]]:
    loader = make_loader(tiny_run().data, uri, batch_size=8, seed=0, rank=dist.rank(), world=dist.world())
    with contextlib.closing(loader):
        net: Any = torch.nn.Identity()
        evaluator = Scripted(
            net=net, loader=loader, device=torch.device("cpu"), batch_size=3, normalize=lambda batch: batch
        )
        return [asdict(pair) for split in ("train", "test") for pair in evaluator.tested(split, examples=True).confused]


def test_the_confused_samples_are_exact_on_one_and_on_two_ranks(tiny_shards: str) -> None:
    expected = []
    for split in ("train", "test"):
        labels_N = ShardStore(tiny_shards).labels(split)
        predictions_N = predicted(np.arange(len(labels_N)))
        expected += [asdict(pair) for pair in pairs_of(labels_N, predictions_N, CLASSES, split)]
    assert sum(pair["count"] for pair in expected) > 30
    assert _confused(tiny_shards) == expected
    assert run_ranks(_confused, 2, tiny_shards) == [expected, expected]


@pytest.mark.parametrize("change", [-1, 1])
def test_rows_that_are_lost_or_doubled_are_an_error(tiny_shards: str, change: int) -> None:
    class Careless(Scripted):
        def outputs(self, split: str) -> Iterator[tuple[Batch, ModelOutput]]:
            every = list(super().outputs(split))
            yield from every[:-1] if change < 0 else [*every, every[0]]

    loader = make_loader(tiny_run().data, tiny_shards, batch_size=8, seed=0)
    with contextlib.closing(loader):
        net: Any = torch.nn.Identity()
        careless = Careless(
            net=net, loader=loader, device=torch.device("cpu"), batch_size=1, normalize=lambda batch: batch
        )
        count = loader.store.manifest.splits["test"].num_samples
        with pytest.raises(DataError, match=rf"split 'test' saw {count + change} rows; the manifest has {count}"):
            careless.tested("test")


def test_intervals_are_drawn_alike_for_the_same_split_and_otherwise_for_another_or_other_data(
    tiny_shards: str, tmp_path: Path
) -> None:
    """All of the same counts; the other data are the same samples in another order."""
    make_tiny(str(tmp_path / "other"), seed=1)
    with scripted(tiny_shards) as first, scripted(tiny_shards) as again, scripted(str(tmp_path / "other")) as other:
        counts = first.counts("test")
        drawn = first._intervals(counts, "test")
        assert "top1" in drawn and again._intervals(counts, "test") == drawn
        for evaluator, split in ((first, "val"), (other, "test")):
            found = evaluator._intervals(counts, split)
            assert found.keys() == drawn.keys() and found != drawn


def test_attributes_are_counted_in_the_split_train_whatever_split_is_trained_on(tmp_path: Path) -> None:
    counts_CA = {"train": ((5, 1), (2, 3)), "train_cbl": ((1, 3), (3, 1)), "test": ((1, 1), (1, 1))}
    image = png(np.random.default_rng(0))
    splits = {
        split: [
            Sample(f"{split}_{label}_{attribute}_{n}", image, "png", label, attribute)
            for label, row in enumerate(table)
            for attribute, count in enumerate(row)
            for n in range(count)
        ]
        for split, table in counts_CA.items()
    }
    write_dataset(tmp_path, classes=["ant", "bee"], attributes=["day", "night"], splits=splits, image_size=16)
    with scripted(str(tmp_path), data__train_split="train_cbl") as evaluator:
        assert evaluator.attribute_counts.table_CA().tolist() == [list(row) for row in counts_CA["train"]]
