"""The data in the reports: a grid of images by class and attribute, in words, and histograms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltcore.reporting import pictures
from ltcore.reporting.report import make_report
from tests.reporting import colored, own_run
from tests.reporting.fake_sweep import make_sweep, write_json
from tests.reporting.page import Page


def report_of(folder: Path, train_split: str = "train", **options: Any) -> Page:
    """A run on colored images."""
    own_run.write(folder / "run")
    manifest = colored.write(folder / "data", **options)
    info = json.loads((folder / "run" / "run.json").read_text())
    info["data"] |= {"uri": str(folder / "data"), "hash": manifest.hash, "classes": manifest.classes}
    info["data"] |= {"shot_groups": manifest.shot_groups, "class_counts": manifest.class_counts["train"]}
    info["config"]["data.train_split"] = train_split
    info |= {"per_class": None, "support": None, "confused": None}
    write_json(folder / "run" / "run.json", info)
    return Page(make_report([folder / "run"]))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report_of(tmp_path_factory.mktemp("colored"))


def test_cells_have_the_counts_of_training_and_of_the_balanced_test(page: Page) -> None:
    cells = {
        (d["split"], d["class"], d["attribute"]): int(d["value"]) for d in page.data if d.get("stat") == "cell-images"
    }
    assert cells == {
        (split, colored.CLASSES[label], colored.ATTRIBUTES[attribute]): count
        for split in ("train", "test_gbl")
        for label, counts_A in enumerate(colored.COUNTS[split])
        for attribute, count in enumerate(counts_A)
    }
    assert page.tags.count("img") == sum(count > 0 for count in cells.values())
    assert page.values(split="train", stat="class-images") == [25, 3], "the largest class first"
    assert not {"b", "i"} & set(page.words.split()) and "<i>blue</i>" in page.words


def test_attributes_that_a_class_has_alone_stand_below_their_images(tmp_path: Path) -> None:
    counts = {"train": ((5, 0, 1), (0, 3, 0)), "test": ((1, 0, 1), (0, 1, 0))}
    page = report_of(tmp_path, counts=counts)
    cells = {(d["class"], d["attribute"]): int(d["value"]) for d in page.data if d.get("stat") == "cell-images"}
    (few, most), (red, blue, green) = colored.CLASSES, colored.ATTRIBUTES
    assert cells == {(few, red): 1, (few, green): 1, (most, blue): 1}, "those of the test, which come last"
    assert "Columns are ranks of attributes in the class." in " ".join(page.words.split())


def test_the_caption_says_what_is_unbalanced_and_that_the_test_is_not(page: Page) -> None:
    words = " ".join(page.words.split())
    share = (20 + 2) / 28
    assert f"In train, classes have 25 to 3 images, and {share:.0%} of the images have the most frequent" in words
    assert "In test_gbl, every class has 4 with each attribute: what is rare in training counts as much" in words


def test_a_natural_test_is_described_as_it_is(tmp_path: Path) -> None:
    counts = {split: colored.COUNTS[split] for split in ("train", "test_cbl")}
    words = " ".join(report_of(tmp_path, counts=counts).words.split())
    assert f"In test_cbl, every class has 3, and {(1 + 3) / 6:.0%} have the attribute that is most frequent" in words


def test_every_split_has_its_histograms_and_shares_by_rank(page: Page) -> None:
    for split in colored.COUNTS:
        assert f'id="classes-{split}-' in page.html and f'id="attributes-{split}-' in page.html
    assert len(page.ids) == len(set(page.ids))
    assert page.values(split="train", stat="rank-share") == [22 / 28, 6 / 28, 0]
    assert page.values(split="test_cbl", stat="rank-share") == [4 / 6, 0, 2 / 6]
    assert page.values(split="test_gbl", stat="rank-share") == [8 / 24, 8 / 24, 8 / 24]


def test_without_attributes_a_class_has_examples_and_a_bar(tmp_path: Path) -> None:
    page = report_of(tmp_path, attributes=False)
    assert not [d for d in page.data if d.get("stat") == "cell-images"]
    assert page.tags.count("img") == (6 + 3) + (6 + 6)
    assert "In train, classes have 25 to 3 images. In test_gbl, every class has 12." in page.words


def test_cells_without_room_for_their_picture_keep_their_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PAGE_BYTES", 2000)
    page = report_of(tmp_path)
    assert 0 < page.tags.count("img") < 10
    assert len([d for d in page.data if d.get("stat") == "cell-images"]) == 12


def test_damaged_labels_are_named_instead(tmp_path: Path) -> None:
    report_of(tmp_path)
    for table in (tmp_path / "data").rglob("*-labels.npy"):
        table.write_bytes(b"")
    page = Page(make_report([tmp_path / "run"]))
    assert "What is unbalanced" not in page.words
    assert page.words.count("Without pictures, because the data cannot be read") == 1


def test_a_sweep_shows_its_data(tmp_path: Path) -> None:
    make_sweep(tmp_path / "sweep")
    manifest = colored.write(tmp_path / "data", classes=("zero", "one"))
    for file in (tmp_path / "sweep").rglob("run.json"):
        info = json.loads(file.read_text())
        info["data"] |= {"uri": str(tmp_path / "data"), "hash": manifest.hash}
        write_json(file, info)
    page = Page(make_report([tmp_path / "sweep"]))
    assert page.values(split="train", stat="class-images") == [25, 3] and "Without pictures" not in page.words


def test_a_run_on_balanced_classes_ranks_attributes_as_the_long_tail_does(tmp_path: Path) -> None:
    """Its own split has other counts: the ranks of metrics are those of ``train``."""
    balanced = tuple(tuple(reversed(counts_A)) for counts_A in colored.COUNTS["train"])
    page = report_of(tmp_path, train_split="train_cbl", counts={**colored.COUNTS, "train_cbl": balanced})
    assert page.values(split="train", stat="rank-share") == [22 / 28, 6 / 28, 0]
    assert page.values(split="train_cbl", stat="rank-share") != [22 / 28, 6 / 28, 0]
    assert page.values(split="test_gbl", stat="rank-share") == [8 / 24, 8 / 24, 8 / 24]
