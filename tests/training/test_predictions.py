"""Predictions of many images: the same as of single ones, in order, each once, and a wrong one is a row of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import ltcore
from ltcore.data.datasets.inputs import Inputs
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.training.predictions import Predictions, in_order, predict_items, predict_split
from ltcore.training.predictor import Predictor
from tests.conftest import TINY_COUNTS, png, tiny_samples
from tests.data.small import write_small, write_spoiled


@pytest.fixture(scope="module")
def predictor(stage1: Path) -> Predictor:
    return ltcore.load(stage1)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltcore.training.predictor.MOST_PER_BATCH", 4)


@pytest.mark.usefixtures("small_batches")
def test_many_files_are_predicted_as_one_by_one_and_wrong_ones_say_why(predictor: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(30):
        (tmp_path / f"{n:02}.png").write_bytes(png(rng, 16 + n, 20))
    (tmp_path / "03.png").write_bytes(b"no image")
    (tmp_path / "17.png").write_bytes(b"")
    parts = list(predict_items(predictor, Inputs([str(tmp_path)], predictor.classes), top_k=3, logits=True))
    assert [len(part) for part in parts] == [4] * 7 + [2]
    files = [file for part in parts for file in part.files]
    errors = [error for part in parts for error in part.errors]
    assert files == sorted(map(str, tmp_path.iterdir()))
    assert [n for n, error in enumerate(errors) if error] == [3, 17]
    assert errors[3] is not None and errors[3].startswith(f"{files[3]}: the image cannot be decoded")
    good = [n for n in range(30) if n not in (3, 17)]
    tops = predictor.predict_top([files[n] for n in good], 3)
    classes_Bk = np.concatenate([part.classes_Bk for part in parts])[good]
    probabilities_Bk = np.concatenate([part.probabilities_Bk for part in parts])[good]
    assert [[predictor.classes[c] for c in row] for row in classes_Bk] == [[name for name, _ in row] for row in tops]
    assert_allclose(probabilities_Bk, [[p for _, p in row] for row in tops], atol=1e-6)
    logits_BC = np.concatenate([part.logits_BC for part in parts if part.logits_BC is not None])
    assert_allclose(logits_BC[good], predictor.logits(predictor.read([files[n] for n in good])), atol=1e-5)


@pytest.mark.usefixtures("small_batches")
def test_a_split_has_every_row_once_in_index_order_with_its_label(predictor: Predictor, tiny_shards: str) -> None:
    store = ShardStore(tiny_shards)
    for split, counts in TINY_COUNTS.items():
        parts = list(predict_split(predictor, store, split))
        keys = [key for part in parts for key in part.files]
        assert keys == store.keys(split) and len(keys) == sum(counts)
        assert [part.first_index for part in parts] == list(range(0, len(keys), 4))
        labels = [label for part in parts for label in part.labels]
        assert labels == [store.manifest.classes[label] for label in store.labels(split)]
        images = {sample.key: sample.image for sample in tiny_samples(split)}
        found = [predictor.classes[c] for part in parts for c in part.classes_Bk[:, 0]]
        assert found == [name for name, _ in predictor.predict([images[key] for key in keys])]


def test_rows_of_shards_that_cannot_be_read_or_decoded_say_why(predictor: Predictor, tmp_path: Path) -> None:
    write_spoiled(tmp_path / "spoiled")
    (part,) = predict_split(predictor, ShardStore(str(tmp_path / "spoiled")), "train")
    wrong = {key: error for key, error in zip(part.files, part.errors, strict=True) if error}
    assert wrong.keys() == {"k0", "k2"} and all("spoiled: train/k" in error for error in wrong.values())
    write_small(tmp_path / "small")
    (tar,) = (tmp_path / "small").rglob("*.tar")
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    store = ShardStore(str(tmp_path / "small"))
    store.read_rows("train", np.arange(1))  # it was whole when it was opened
    tar.write_bytes(data)
    (part,) = predict_split(predictor, store, "train")
    (error,) = (error for error in part.errors if error)
    assert "found crc32" in error and len(part) == 3


def test_lost_doubled_and_exchanged_rows_are_noticed(predictor: Predictor, tiny_shards: str) -> None:
    (part,) = predict_split(predictor, ShardStore(tiny_shards), "val")
    a, b, c = (replace(_cut(part, span), first_index=span.start) for span in (range(4), range(4, 8), range(8, 12)))
    assert list(in_order([a, b, c], "val", 12)) == [a, b, c]
    for parts in ([a, c], [a, a, b], [b, a, c], [a, b], [a, b, c, c]):
        with pytest.raises(DataError, match=r"Predictions of split 'val'(: row \d+ is missing| end after 8 rows)"):
            list(in_order(parts, "val", 12))


def _cut(part: Predictions, span: range) -> Predictions:
    at = slice(span.start, span.stop)
    lists = {name: getattr(part, name)[at] for name in ("files", "labels", "errors", "classes_Bk", "probabilities_Bk")}
    return replace(part, **lists)
