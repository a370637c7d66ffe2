"""Predictions by a pool of actors are those of one process, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ltcore
from ltcore.data.shards.reader import ShardStore
from ltcore.training.predictions import Predictions, predict_split
from tests.data.small import write_spoiled
from tests.training.runs import run, tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def rows(parts: Iterator[Predictions]) -> list[tuple[object, ...]]:
    return [
        (part.split, part.first_index + n, part.files[n], part.labels[n], part.errors[n], *part.classes_Bk[n])
        for part in parts
        for n in range(len(part))
    ]


@pytest.mark.usefixtures("one_ray")
def test_the_same_rows_come_in_the_same_order(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltcore.runtime.ray_predict import predict_split_on_ray

    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    write_spoiled(tmp_path / "spoiled")
    predictor = ltcore.load(tmp_path / "run")
    monkeypatch.setattr("ltcore.training.predictor.MOST_PER_BATCH", 4)
    for uri in (tiny_shards, str(tmp_path / "spoiled")):
        store = ShardStore(uri)
        here = list(predict_split(predictor, store, "train", top_k=2, logits=True))
        there = list(predict_split_on_ray(predictor, store, "train", top_k=2, logits=True))
        assert rows(iter(there)) == rows(iter(here))
        logits = [
            np.concatenate([part.logits_BC for part in parts if part.logits_BC is not None]) for parts in (here, there)
        ]
        assert np.allclose(*logits, atol=1e-5)
