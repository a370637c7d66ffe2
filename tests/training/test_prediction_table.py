"""The table of predictions: one set of columns in three formats, written in pieces, whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ltcore.errors import DataError
from ltcore.storage import read_jsonl, written
from ltcore.training.prediction_table import Layout, write_predictions
from ltcore.training.predictions import Predictions

CLASSES = ("ant", "bee", "caf\udce9")


def part(first: int, count: int = 2) -> Predictions:
    """Images of which the second cannot be read."""
    rng = np.random.default_rng(first)
    probabilities_BC = rng.dirichlet((1, 1, 1), count).astype(np.float32)
    order_BC = np.argsort(-probabilities_BC)
    return Predictions(
        files=[f"{first + n}.png" for n in range(count)],
        labels=["bee", None] * (count // 2),
        errors=[None, "no image"] * (count // 2),
        classes_Bk=order_BC[:, :2],
        probabilities_Bk=np.take_along_axis(probabilities_BC, order_BC, 1)[:, :2],
        logits_BC=np.log(probabilities_BC),
        split="test",
        first_index=first,
    )


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_all_formats_hold_the_same_rows(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"out{ending}"
    layout = Layout(CLASSES, 2, logits=ending != ".csv", labels=True, dataset=True)
    parts = [part(0), part(2)]
    write_predictions(str(file), iter(parts), layout, {"run": "tiny", "classes": CLASSES})
    rows = read(file)
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert [(row["split"], int(row["index"])) for row in rows] == [("test", n) for n in range(4)]
    names = ("ant", "bee", r"caf\udce9")
    for n, row in enumerate(rows):
        source, at = parts[n // 2], n % 2
        values = [row[name] for name in ("class", "probability", "class_2", "probability_2")]
        if at:
            assert values == [None] * 4 and row["error"] == "no image" and row["label"] is None
            continue
        assert values[::2] == [names[c] for c in source.classes_Bk[at]]
        assert [np.float32(value) for value in values[1::2]] == source.probabilities_Bk[at].tolist()
        assert row["label"] == "bee" and row["error"] is None
        if layout.logits:
            assert source.logits_BC is not None and np.array_equal(np.float32(row["logits"]), source.logits_BC[at])


def read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        assert json.loads(table.schema.metadata[b"ltcore"])["run"] == "tiny"
        return table.to_pylist()  # type: ignore[no-any-return]
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    with file.open(newline="", encoding="utf-8") as stream:
        return [{name: value or None for name, value in row.items()} for row in csv.DictReader(stream)]


def test_only_the_columns_that_say_something_are_there(tmp_path: Path) -> None:
    write_predictions(str(tmp_path / "out.csv"), [part(0)], Layout(CLASSES, 1), {})
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == '"file","class","probability","error"'


def test_pieces_are_joined_to_row_groups_and_held_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltcore.training.prediction_table.MOST_CELLS", 4 * 10)
    write_predictions(str(tmp_path / "out.parquet"), (part(2 * n) for n in range(25)), Layout(CLASSES, 1), {})
    found = pq.ParquetFile(tmp_path / "out.parquet")
    assert [found.metadata.row_group(n).num_rows for n in range(found.metadata.num_row_groups)] == [10] * 5


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("error", [DataError, KeyboardInterrupt])
def test_nothing_is_left_where_predictions_end_early(ending: str, error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / f"out{ending}").write_text("earlier")

    def parts() -> Iterator[Predictions]:
        yield part(0)
        raise error

    with pytest.raises(error):
        write_predictions(str(tmp_path / f"out{ending}"), parts(), Layout(CLASSES, 1), {})
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for place, words in (
        (tmp_path / "file" / "out.csv", "cannot be written"),
        (tmp_path / "folder.csv", "is a folder"),
    ):
        with pytest.raises(DataError, match=words), written(str(place)):
            pass
