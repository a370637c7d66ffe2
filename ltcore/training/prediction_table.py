"""Predictions as one table: parquet, CSV or JSON lines, with the same columns, written in pieces.

Columns: ``file``; of a data set ``split`` and ``index``; ``label`` where labels are known; ``class`` and ``probability``,
then ``class_2``, ``probability_2`` and so on; ``logits`` where asked for, a list in the order of the run's classes; and
``error``, why an image could not be read, whose other columns are then empty.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.storage import written
from ltcore.text import storable

if TYPE_CHECKING:
    import pyarrow as pa

    from ltcore.training.predictions import Predictions

MOST_CELLS = 2**22
"""Of one piece, which is a row group in parquet."""


@dataclass(frozen=True)
class Layout:
    """Which columns there are."""

    classes: Sequence[str]
    """Of the network."""
    top_k: int
    """Never more than there are classes."""
    logits: bool = False
    labels: bool = False
    dataset: bool = False
    """Whether rows have a split and an index."""

    def schema(self) -> pa.Schema:
        """Returns the columns with their types."""
        import pyarrow as pa

        fields = [("file", pa.string())]
        if self.dataset:
            fields += [("split", pa.string()), ("index", pa.int64())]
        if self.labels:
            fields.append(("label", pa.string()))
        for k in range(self.top_k):
            fields += [(f"class{_rank(k)}", pa.string()), (f"probability{_rank(k)}", pa.float32())]
        if self.logits:
            fields.append(("logits", pa.list_(pa.float32())))
        return pa.schema([*fields, ("error", pa.string())])

    def table(self, part: Predictions) -> pa.Table:
        """Returns predictions as a table."""
        import numpy as np
        import pyarrow as pa

        schema, failed_B = self.schema(), np.array([error is not None for error in part.errors])
        names = pa.array([storable(name) for name in self.classes])
        columns: dict[str, Any] = {"file": [storable(file) for file in part.files], "error": _storable(part.errors)}
        if self.dataset:
            columns["split"] = [part.split] * len(part)
            columns["index"] = np.arange(part.first_index, part.first_index + len(part))
        if self.labels:
            columns["label"] = _storable(part.labels)
        for k in range(self.top_k):
            columns[f"class{_rank(k)}"] = names.take(pa.array(part.classes_Bk[:, k], mask=failed_B))
            columns[f"probability{_rank(k)}"] = pa.array(part.probabilities_Bk[:, k], mask=failed_B)
        if self.logits and part.logits_BC is not None:
            rows = zip(part.logits_BC, failed_B, strict=True)
            columns["logits"] = pa.array([None if failed else row for row, failed in rows], schema.field("logits").type)
        return pa.table([columns[name] for name in schema.names], schema=schema)


def write_predictions(file: str, parts: Iterable[Predictions], layout: Layout, about: dict[str, Any]) -> None:
    """Writes the table when all parts have come, or nothing; ``about`` becomes metadata of a parquet file."""
    schema = layout.schema().with_metadata({"ltcore": json.dumps(about)})
    writer = next(writer for ending, writer in _WRITERS.items() if file.endswith(ending))
    with written(file) as aside, writer(aside, schema) as write:
        for table in _pieces((layout.table(part) for part in parts), MOST_CELLS // _width(layout)):
            write(table)


def _pieces(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yields the tables joined to pieces of about as many rows."""
    import pyarrow as pa

    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= rows:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _width(layout: Layout) -> int:
    return len(layout.schema().names) + (len(layout.classes) if layout.logits else 0)


Write = Callable[["pa.Table"], None]


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema) as writer:
        yield lambda table: writer.write_table(table.replace_schema_metadata(schema.metadata))


@contextlib.contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Write]:
    import pyarrow.csv as pc

    with pc.CSVWriter(str(path), schema) as writer:
        yield writer.write_table


@contextlib.contextmanager
def _jsonl(path: Path, _: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as stream:
        yield lambda table: stream.writelines(f"{json.dumps(_short(row))}\n" for row in table.to_pylist())


_WRITERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row with as many digits as float32 has."""
    return {
        name: [_digits(x) for x in value] if isinstance(value, list) else _digits(value) for name, value in row.items()
    }


def _digits(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _storable(texts: Sequence[str | None]) -> list[str | None]:
    return [None if text is None else storable(text) for text in texts]


def _rank(k: int) -> str:
    return f"_{k + 1}" if k else ""
