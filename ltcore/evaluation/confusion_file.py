"""The confusion matrix of a test as a small file: a sparse matrix of SciPy, which a few predictions per class leave small.

``scipy.sparse.load_npz(io.BytesIO(data))`` reads it too: rows are labels, columns predictions, both class ids of ``run.json``.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltcore.errors import DamagedFileError
from ltcore.evaluation.confusion import Confusion
from ltcore.storage import DAMAGED, find_bytes, write_bytes_atomic

MAX_BYTES = 2**28
"""Of the arrays in a file that is read: 20 million different pairs."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What zipfile, NumPy and SciPy raise for other files."""


@dataclass(frozen=True)
class Cell:
    """How often samples of one class were taken for another, or for their own."""

    label: int
    prediction: int
    count: int


@dataclass(frozen=True)
class ConfusionCells:
    """A confusion matrix as its cells above 0, by label and prediction."""

    num_classes: int
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, confusion: Confusion) -> ConfusionCells:
        """Reads the counts; no copy of their size is made."""
        num_classes, places = confusion.pairs.num_classes, confusion.counts_PC.nonzero()
        rows_N, predictions_N = places.T
        counts_N = confusion.counts_PC[rows_N, predictions_N].cpu().numpy()
        codes_N = confusion.pairs.labels_P[rows_N.cpu().numpy()] * num_classes + predictions_N.cpu().numpy()
        codes_K, cells_N = np.unique(codes_N, return_inverse=True)
        counts_K = np.zeros(len(codes_K), np.int64)
        np.add.at(counts_K, cells_N, counts_N)  # a class has a row for each of its attributes
        columns = (codes_K // num_classes, codes_K % num_classes, counts_K)
        return cls(num_classes, tuple(map(Cell, *(column.tolist() for column in columns))))

    def confused(self, most: int) -> list[Cell]:
        """Returns the most frequent confusions of two classes, the first by id where equally frequent."""
        wrong = (cell for cell in self.cells if cell.label != cell.prediction)
        return sorted(wrong, key=lambda cell: (-cell.count, cell.label, cell.prediction))[:most]

    def columns(self) -> dict[str, list[int]]:
        """Returns the cells as JSON: class ids of label and prediction, and counts."""
        fields = [(cell.label, cell.prediction, cell.count) for cell in self.cells]
        columns = [list(column) for column in zip(*fields, strict=True)] or [[], [], []]
        return dict(zip(("label", "prediction", "count"), columns, strict=True))

    def dense(self) -> list[list[int]]:
        """Returns the whole matrix; for a moderate number of classes."""
        rows = [[0] * self.num_classes for _ in range(self.num_classes)]
        for cell in self.cells:
            rows[cell.label][cell.prediction] = cell.count
        return rows


def confusion_name(split: str, weights: str) -> str:
    """Returns where a run keeps a matrix, below its directory; ``weights`` is 'last' or 'best'."""
    return f"confusion/{split}-{weights}.npz"


def write_confusion(file: str, confusion: ConfusionCells) -> None:
    """Writes a matrix to a path or URI, whole or not at all; equal ones as equal bytes."""
    from scipy import sparse  # a dependency of scikit-learn, slow to import

    labels, predictions, counts = (np.array(column, dtype=np.int64) for column in confusion.columns().values())
    size = (confusion.num_classes, confusion.num_classes)
    buffer = io.BytesIO()
    sparse.save_npz(buffer, sparse.csr_array((counts, (labels, predictions)), shape=size))
    write_bytes_atomic(file, buffer.getvalue())


def read_confusion(file: Path, num_classes: int) -> ConfusionCells | None:
    """Reads a matrix of ``num_classes`` classes; None where there is no file.

    Raises DataError where it cannot be read, and DamagedFileError where it is not such a matrix. Nothing is unpickled.
    """
    from scipy import sparse

    if (data := find_bytes(str(file), MAX_BYTES)) is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
        if size_bytes > MAX_BYTES:
            raise ValueError(f"its arrays take {size_bytes} bytes, expected {MAX_BYTES} at most")
        found = sparse.load_npz(file)
        if (found.format, found.shape) != ("csr", (num_classes, num_classes)):
            raise ValueError(f"it is a {found.format} matrix of {found.shape}, expected csr of {num_classes} classes")
        found.check_format(full_check=True)
        if found.dtype.kind != "i" or (found.nnz and int(found.data.min()) < 0):
            raise ValueError("it holds other values than counts")
    except _UNREADABLE as error:
        raise DamagedFileError(f"{file} is no confusion matrix: {error}. {DAMAGED}") from None
    found.sum_duplicates()
    found = found.tocoo()
    cells = zip(found.row.tolist(), found.col.tolist(), found.data.tolist(), strict=True)
    return ConfusionCells(num_classes, tuple(Cell(*cell) for cell in cells if cell[2]))
