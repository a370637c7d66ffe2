"""The report of one run: its classes, confusions with pictures, calibration and data, against what the run wrote."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltcore.data.shards.manifest import Manifest
from ltcore.evaluation.intervals import wilson
from ltcore.reporting import pictures, run_page
from ltcore.reporting.report import make_report
from tests.records import run_record
from tests.reporting import own_run
from tests.reporting.fake_sweep import write_json
from tests.reporting.own_run import CLASSES, COLORS, RECOGNIZED, TESTED, TRAINED
from tests.reporting.page import Page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    own_run.write(tmp_path / "run")
    return tmp_path / "run"


def page_of(run: Path) -> Page:
    return Page(make_report([run]))


def edit(run: Path, **changes: Any) -> None:
    info = json.loads((run / "run.json").read_text())
    info["data"] |= changes.pop("data", {})
    write_json(run / "run.json", info | changes)


def confused_part(page: Page) -> str:
    return page.html.partition("<h2>Confused most</h2>")[2].partition("</section>")[0]


def colors(page: Page) -> list[tuple[int, int]]:
    """The class by color, and the longer side, of each picture of confused classes."""
    found = []
    for text in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', confused_part(page)):
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        distance_C = np.abs(np.asarray(image).mean((0, 1)) - np.array(COLORS)).sum(1)
        assert distance_C.min() < 12
        found.append((int(distance_C.argmin()), max(image.size)))
    return found


def test_classes_are_sorted_by_size_with_recall_and_wilson_interval(run: Path) -> None:
    page = page_of(run)
    shown = [d for d in page.data if d.get("stat") == "trained"]
    assert [(d["class"], int(d["value"])) for d in shown] == list(zip(CLASSES, TRAINED, strict=True))
    recalls = [d for d in page.data if d.get("stat") == "recall"]
    for found, hits, tested in zip(recalls[:3], RECOGNIZED, TESTED, strict=False):
        assert float(found["value"]) == hits / tested
        assert (float(found["low"]), float(found["high"])) == wilson(hits, tested)
    assert "value" not in recalls[3] and "no test image" in page.words
    for text in ("95% Wilson score intervals", "80.0% 24 of 30", "many-shot 1 class", "few-shot 2 classes"):
        assert text in page.words, text


def test_images_that_show_the_same_picture_do_not_narrow_an_interval(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Manifest, "repeats", lambda self, split: 5)
    recalls = [d for d in page_of(run).data if d.get("stat") == "recall"]
    for found, hits, tested in zip(recalls[:3], RECOGNIZED, TESTED, strict=False):
        assert float(found["value"]) == hits / tested
        assert (float(found["low"]), float(found["high"])) == wilson(hits / 5, tested / 5)


def test_the_largest_class_comes_first_whatever_its_number(run: Path) -> None:
    edit(run, data={"class_counts": [3, 500, 40, 40], "shot_groups": ["few", "many", "medium", "medium"]})
    names = [d["class"] for d in page_of(run).data if d.get("stat") == "trained"]
    assert names == [CLASSES[c] for c in (1, 2, 3, 0)]


def test_many_classes_are_drawn_by_rank_and_listed(run: Path) -> None:
    info = own_run.many_classes(run, 200)
    page = page_of(run)
    assert "rank-wide-test-" in page.html and "rank-narrow-test-" in page.html
    assert "mean over 9 neighbors" in page.words and "All 200 classes" in page.words
    counts = [float(d["value"]) for d in page.data if d.get("stat") == "trained"]
    assert counts == sorted(info["data"]["class_counts"], reverse=True)
    assert len(page.ids) == len(set(page.ids))


def test_confused_pairs_show_the_images_that_were_confused(run: Path) -> None:
    page = page_of(run)
    pairs = [d for d in page.data if d.get("stat") == "confused"]
    assert [(d["class"], d["prediction"], int(d["value"])) for d in pairs] == [
        (CLASSES[0], CLASSES[1], 6),
        (CLASSES[2], CLASSES[3], 5),
        (CLASSES[1], CLASSES[2], 3),
    ]
    assert "6 of 30 test images (20.0%)" in page.words
    assert [label for label, _ in colors(page)] == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2 + [1] * 3 + [2] * 2
    assert {side for _, side in colors(page)} == {48, 96}, "small images keep their size, large ones become small"
    keys = re.findall(r'title="((?:test|train)/[^"]*)"', confused_part(page))
    assert len(keys) == len(set(keys))
    confused = {key for key in keys if key.startswith("test/")}
    labels = [int(key.split("/")[1].split("-")[0]) for key in confused]
    assert sorted(labels) == [0] * 4 + [1] * 3 + [2] * 4


def test_every_metric_that_has_a_value_stands_in_the_table_with_its_meaning(run: Path) -> None:
    edit(
        run,
        test={"test": {"top1": 0.75, "many": None, "attribute/red": 0.5}, "test_gbl": {"top1": 0.25, "many": 0.125}},
    )
    page = page_of(run)
    shown = {d["metric"]: d.get("value") for d in page.data if d.get("metric", "").startswith("test")}
    assert shown == {
        "test/top1": "0.75",
        "test/many": None,
        "test/attribute/red": "0.5",
        "test_gbl/top1": "0.25",
        "test_gbl/many": "0.125",
        "test_gbl/attribute/red": None,
    }
    assert "share of correct predictions; higher is better" in page.words and "ECE" not in page.words.split("Tests")[1]


def test_class_names_are_text_and_no_markup(run: Path) -> None:
    page = page_of(run)
    assert CLASSES[1] in page.words
    assert not {"b", "script", "link", "iframe"} & set(page.tags)
    assert "onerror" not in {name for names in page.attributes for name in names}
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert "images of <alps>" in page.words


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"hash": "0" * 64}, "holds other data now than those that the run was trained on"),
        ({"uri": "/nowhere/shards"}, "/nowhere/shards/manifest.json does not exist"),
        ({"uri": "s3://bucket/shards"}, "the data are in an object store, s3://bucket/shards"),
    ],
)
def test_without_its_data_the_page_has_pairs_and_says_why_no_pictures(run: Path, data: Any, said: str) -> None:
    edit(run, data=data)
    page = page_of(run)
    assert page.words.count(said) == 1 and "img" not in page.tags
    assert len([d for d in page.data if d.get("stat") == "confused"]) == 3
    assert page.values(split="train", stat="images") == [sum(TRAINED)]
    assert page.values(split="test", stat="images") == [sum(TESTED)]


def test_a_damaged_shard_is_named(run: Path) -> None:
    (shard,) = (run.parent / "shards").rglob("*test*.tar")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    page = page_of(run)
    assert "Without pictures, because the data cannot be read: " in page.words and str(shard) in page.words
    assert len([d for d in page.data if d.get("stat") == "confused"]) == 3


def test_pictures_are_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page_of(run)
    monkeypatch.setattr(pictures, "MAX_PAGE_BYTES", 3000)
    small = page_of(run)
    assert 0 < small.tags.count("img") < whole.tags.count("img")
    assert sum(len(link) for link in small.links if link.startswith("data:")) <= 3000


def test_an_index_outside_the_split_is_left_out(run: Path) -> None:
    pairs = [{"label": 0, "prediction": 1, "count": 6, "examples": [-1, 10**12]}]
    edit(run, confused={"test": pairs})
    assert [label for label, _ in colors(page_of(run))] == [1, 1], "those of training alone"


def test_calibration_and_data_are_those_of_the_run(run: Path) -> None:
    page = page_of(run)
    assert page.values(split="test", stat="ece") == [0.125]
    assert page.values(tile="test/balanced_accuracy") == page.values(metric="test/balanced_accuracy") == [0.475]
    splits = [d["split"] for d in page.data if d.get("stat") == "images"]
    assert splits == ["train", "test"]
    for text in ("balanced_softmax", "resnet8", "1/5 of each class by keyed hash", "4, with 120 to 2 training images"):
        assert text in page.words, text


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    assert make_report([run]).read_bytes() == make_report([run], run / "again.html").read_bytes()


def test_the_page_says_how_well_environments_find_attributes() -> None:
    known = run_record(last={"ifl/attribute_auc": 0.712})
    assert (
        "environments",
        "minority attributes outweigh the majority one of their class in 71.2% of pairs (chance: 50%)",
    ) in (run_page._trained(known, None))
    assert "environments" not in dict(run_page._trained(run_record(), None))
