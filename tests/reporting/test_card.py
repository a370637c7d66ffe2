"""The model card says what is in run.json, and nothing in it breaks out of its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ltcore.config.records import RunRecord
from ltcore.errors import DataError
from ltcore.reporting.card import model_card
from tests.records import DATA, run_record
from tests.reporting.finished_run import write

VERSIONS = {"ltcore": "0.1.0"}
HOSTILE = (
    "<script>alert(1)</script>",
    "a | b\n# heading",
    "![x](https://evil.example/p.png)",
    "`code` \x1b[2J",
    "caf\udce9",
)


def change(folder: Path, **fields: Any) -> str:
    record = RunRecord.read(str(folder))
    assert record is not None
    replace(record, **{"versions": VERSIONS, **fields}).write(folder)
    return str(folder)


def test_it_has_classes_data_training_results_and_limits(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 0.75, 0.8)
    per_class = {"test": [0.95, 0.5]}
    support = {"test": [40, 6]}
    card = model_card(change(folder, per_class=per_class, support=support, best={"epoch": 7}, seed=3))
    for line in (
        "# trial-00000",
        f"    model = ltcore.load('{folder}')",
        "test: weights of epoch 7, the best on validation.",
        "| top-1 | 80.0% |",
        "| ant | 40 | many | 95.0% |",
        "| bee | 6 | few | 50.0% |",
        "- 1 class is few-shot; the smallest has 6 training images.",
        "- One run with seed 3: another seed gives other numbers.",
        "| hash of the data | a |",
        "    train.py cifar100_lt_balanced_softmax --data images.zip train.epochs=30 seed=3",
    ):
        assert line in card.splitlines(), line
    assert "test is not balanced (largest/smallest class 40/6): top-1 follows the large classes" in card


def test_a_class_without_test_images_is_a_limit_and_a_balanced_test_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 0.75, 0.8)
    card = model_card(change(folder, per_class={"test": [0.75, None]}, support={"test": [5, 0]}))
    assert "- test has no image of these classes, of which nothing is known: bee." in card
    assert "is not balanced" not in card and "| bee | 6 | few | — |" in card


def test_beside_a_file_it_says_how_to_run_it_and_what_is_on_top(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", 0.75, 0.8)
    file = {"name": "m.onnx", "classes": ["ant", "bee"], "image_size": 16, "posthoc_tau": 1.0, "tta": "flip"}
    card = model_card(change(folder), file)
    assert "## The file m.onnx" in card and "    session = onnxruntime.InferenceSession('m.onnx')" in card
    assert "the file has post-hoc adjustment of 1 and the mean over mirror images on top" in card


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_from_outside_is_text_and_nothing_else(text: str, tmp_path: Path) -> None:
    write(tmp_path / "run", 0.75, 0.8)
    data = replace(DATA, name=text, classes=(text, "bee"))
    folder = change(tmp_path / "run", name=text, data=data, per_class={"test": [None, 0.5]}, versions={"ltcore": text})
    card = model_card(folder, {"name": f"{text}.onnx", "image_size": 16, "checkpoint": text})
    assert all(line.isprintable() for line in card.split("\n"))
    parser = MarkdownIt("commonmark").enable("table")
    plain = change(tmp_path / "run", name="n", data=replace(data, name="n", classes=("n", "bee")), versions=VERSIONS)
    harmless = model_card(plain, {"name": "n.onnx", "image_size": 16, "checkpoint": "n"})
    kinds = [token.type for token in parser.parse(card)]
    assert kinds == [token.type for token in parser.parse(harmless)]
    inline = {child.type for token in parser.parse(card) for child in token.children or ()}
    assert inline <= {"text", "softbreak", "text_special"}


def test_what_is_no_finished_run_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no run\.json, from which the card is made"):
        model_card(str(tmp_path))
    run_record(status="running").write(tmp_path)
    with pytest.raises(DataError, match="is running, not finished"):
        model_card(str(tmp_path))


def test_accuracy_by_attribute_rank_is_in_it_and_parts_of_it_are_not(tmp_path: Path) -> None:
    ranks = {"attribute_rank/majority": 0.9, "attribute_rank/rare": 0.25, "attribute_rank/rare/few": 0.125}
    test = {"test": {"top1": 0.75, "few/ece": 0.0625, **ranks}}
    card = model_card(change(write(tmp_path / "run", 0.75, 0.8), test=test, test_best=test))
    assert "| majority attributes | 90.0% |" in card and "| rare attributes | 25.0% |" in card
    assert "12.5%" not in card and "6.2%" not in card
