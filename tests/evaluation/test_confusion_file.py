"""Confusion matrices in files: the same back, small, and never unpickled."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from ltcore.errors import DamagedFileError, DataError
from ltcore.evaluation import confusion_file
from ltcore.evaluation.confusion_file import Cell, ConfusionCells, confusion_name, read_confusion, write_confusion
from tests.confusions import confusion_of

COUNTS = torch.tensor([[5, 0, 2], [0, 0, 0], [1, 3, 4]])


def test_a_matrix_comes_back_and_scipy_reads_it_too(tmp_path: Path) -> None:
    file = tmp_path / confusion_name("test", "last")
    write_confusion(str(file), ConfusionCells.of(confusion_of(COUNTS[None])))
    found = read_confusion(file, 3)
    assert found == ConfusionCells.of(confusion_of(COUNTS[None])) and found is not None
    assert found.dense() == COUNTS.tolist() == sparse.load_npz(file).toarray().tolist()
    assert found.confused(2) == [Cell(2, 1, 3), Cell(0, 2, 2)]
    assert found.columns() == {"label": [0, 0, 2, 2, 2], "prediction": [0, 2, 0, 1, 2], "count": [5, 2, 1, 3, 4]}
    before = file.read_bytes()
    write_confusion(str(file), found)
    assert file.read_bytes() == before


def test_attributes_are_summed_and_an_empty_matrix_is_one_too(tmp_path: Path) -> None:
    assert ConfusionCells.of(confusion_of(torch.stack([COUNTS, COUNTS]))).dense() == (2 * COUNTS).tolist()
    write_confusion(str(tmp_path / "empty.npz"), ConfusionCells(3, ()))
    assert read_confusion(tmp_path / "empty.npz", 3) == ConfusionCells(3, ())
    assert read_confusion(tmp_path / "none.npz", 3) is None


def test_thousands_of_classes_take_no_more_room_than_their_images(tmp_path: Path) -> None:
    gen = torch.Generator().manual_seed(0)
    places = torch.randint(8142, (2, 24426), generator=gen)
    cells = sorted({(int(a), int(b)) for a, b in places.T})
    write_confusion(str(tmp_path / "large.npz"), ConfusionCells(8142, tuple(Cell(a, b, 1) for a, b in cells)))
    assert (tmp_path / "large.npz").stat().st_size < 2**19


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def saved(matrix: Any) -> bytes:
    buffer = io.BytesIO()
    sparse.save_npz(buffer, matrix)
    return buffer.getvalue()


CSR = {"format": np.array(b"csr"), "shape": np.array([3, 3]), "_is_array": np.array(True)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not a zip",
        archive(labels=np.arange(3)),
        archive(format=np.array([{"pickled": 1}], dtype=object)),
        archive(**CSR, data=np.ones(1, int), indices=np.array([7]), indptr=np.array([0, 1, 1, 1])),
        archive(**CSR, data=np.ones(2, int), indices=np.array([0]), indptr=np.array([0, 1, 1, 1])),
        archive(**CSR, data=np.array([-1]), indices=np.array([0]), indptr=np.array([0, 1, 1, 1])),
        saved(sparse.csr_array(np.full((3, 3), 0.5))),
        saved(sparse.csr_array(np.ones((4, 4), int))),
        saved(sparse.coo_array((np.ones(1, int), ([2**40], [0])), shape=(2**41, 3))),
    ],
    ids=["empty", "torn", "other", "pickle", "outside", "lengths", "negative", "fractions", "classes", "huge"],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"m\.npz is no confusion matrix: "):
        read_confusion(tmp_path / "m.npz", 3)


@pytest.mark.timeout(20)
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.npz")  # to open it would wait for a writer for ever
    with pytest.raises(DataError, match=r"m\.npz is no plain file"):
        read_confusion(tmp_path / "m.npz", 3)


def test_what_would_unpack_to_gigabytes_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion_file, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", bytes(10_000))
    with pytest.raises(DamagedFileError, match="its arrays take 10000 bytes, expected 1000 at most"):
        read_confusion(tmp_path / "m.npz", 3)
