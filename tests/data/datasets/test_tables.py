"""Lists and tables as data: columns, classes, splits, attributes, and one sentence for every broken row."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make, prepare, selection_remarks
from ltcore.data.datasets.registry import on_other_data, recognize
from ltcore.data.datasets.tables import Table
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.source import Sample
from ltcore.errors import ConfigError, DataError
from tests.data.small import tiny_png
from tests.data.web import served

IMAGES = [f"photos/{n} a.png" for n in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images; what lists them is written beside their folder."""
    (tmp_path / "photos").mkdir()
    for n, path in enumerate(IMAGES):
        (tmp_path / path).write_bytes(tiny_png(n))
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., str]:
    def to(text: str | bytes, name: str = "labels.csv") -> str:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(folder / name)

    return to


def table(header: str, *rows: str, end: str = "\n") -> str:
    return end.join([header, *rows]) + end


def two_classes(header: str = "image,label", names: tuple[str, str] = ("cat", "dog")) -> str:
    return table(header, *(f"{path},{names[n % 2]}" for n, path in enumerate(IMAGES)))


def opened(uri: str, **choices: object) -> Table:
    return Table(DataConfig(uri=uri, **{"val_per_class": 0, **choices}))  # type: ignore[arg-type]


def read(uri: str, **choices: object) -> dict[str, list[Sample]]:
    return {split: list(rows) for split, rows in opened(uri, **choices).source().splits.items()}


def labels(uri: str, **choices: object) -> dict[str, int]:
    layout = opened(uri, **choices).layout
    return {entry.path: entry.label for entries in layout.splits.values() for entry in entries}


def refused(uri: str, words: str, error: type[Exception] = DataError, **choices: object) -> None:
    with pytest.raises(error, match=words) as found:
        opened(uri, **choices)
    assert "\n" not in str(found.value) and len(str(found.value)) < 3000


def test_a_table_gives_its_images_untouched(write: Callable[..., str], folder: Path) -> None:
    uri = write(two_classes())
    source = opened(uri).source()
    assert source.classes == ("cat", "dog") and source.name == "labels"
    rows = [row for part in source.splits.values() for row in part]
    assert sorted(row.image for row in rows) == sorted((folder / path).read_bytes() for path in IMAGES)
    assert {row.ext for row in rows} == {"png"} and len({row.key for row in rows}) == 8


@pytest.mark.parametrize(
    "text",
    [
        two_classes("path,category"),
        two_classes("File Name,Class"),
        two_classes("image_path,target"),
        two_classes().replace("\n", "\r\n"),
        "\ufeff" + two_classes(),
        two_classes().replace(",", ";"),
        table("width,label,image,notes", *(f'3,{"cd"[n % 2]},"{p}","a, b"' for n, p in enumerate(IMAGES))),
    ],
)
def test_usual_columns_and_forms_are_known(write: Callable[..., str], text: str) -> None:
    assert labels(write(text)) == {path: n % 2 for n, path in enumerate(IMAGES)}


@pytest.mark.parametrize(
    ("name", "pack"),
    [("t.tsv", str.encode), ("t.csv.gz", lambda t: gzip.compress(t.encode())), ("t.TSV", str.encode)],
)
def test_tabs_and_gzip(write: Callable[..., str], name: str, pack: Callable[[str], bytes]) -> None:
    text = two_classes().replace(",", "\t") if "csv" not in name else two_classes()
    assert len(labels(write(pack(text), name))) == 8


def test_a_list_takes_names_numbers_spaces_and_tabs(write: Callable[..., str]) -> None:
    for separator, names in ((" ", ("cat", "dog")), ("\t", ("a cat", "a dog")), (" ", ("0", "1"))):
        lines = "".join(f"{path}{separator}{names[n % 2]}\n" for n, path in enumerate(IMAGES))
        uri = write(lines, "train.txt")
        assert opened(uri).layout.classes == names
        assert labels(uri)[IMAGES[1]] == 1


def test_paths_may_be_absolute_or_uris_and_mean_the_same(write: Callable[..., str], folder: Path) -> None:
    text = two_classes()
    there = str(folder.resolve())
    for prefix in (f"{there}/", f"file://{there}/", "./", "photos/../"):
        assert labels(write(text.replace("photos/", f"{prefix}photos/"))) == labels(write(text))


def test_columns_split_and_attribute(write: Callable[..., str]) -> None:
    words = ("train", "Training", "train", "train", "valid", "test", "TEST", "dev")
    rows = [f"{path},{'cd'[n % 2]},{words[n]},{('sea', '', 'land')[n % 3]}" for n, path in enumerate(IMAGES)]
    uri = write(table("f,species,split,attribute", *rows))
    found = read(uri, image_column="f", label_column="species")
    assert {split: len(part) for split, part in found.items()} == {"train": 4, "val": 2, "test": 2}
    assert [row.attribute for row in found["train"]] == [1, -1, 0, 1]
    assert opened(uri, image_column="f", label_column="species").source().attributes == ("land", "sea")
    rows = [row.replace("TEST", "test_sea") for row in rows]
    assert len(read(write(table("image,label,split,x", *rows)), attribute_column="x")["test_sea"]) == 1


def test_whole_numbers_are_ordered_as_numbers_and_gaps_are_said(write: Callable[..., str]) -> None:
    uri = write(two_classes(names=("10", "9")))
    assert opened(uri).layout.classes == ("9", "10")
    made = prepare(DataConfig(uri=uri))
    said = selection_remarks(DataConfig(uri=uri), read_manifest(made))
    assert "labels: labels are 9 to 10, numbered 0 to 1 in that order." in said
    assert "with gaps" in opened(write(two_classes(names=("1", "7")))).layout.provenance["labels"]
    assert not opened(write(two_classes(names=("0", "1")))).layout.provenance


def test_numbers_take_the_names_of_their_folders(folder: Path, write: Callable[..., str]) -> None:
    for n in range(4):
        path = folder / ("zoo", "airport")[n % 2] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tiny_png(n))
    rows = [f"{('zoo', 'airport')[n % 2]}/{n}.png,{n % 2 + 1}" for n in range(4)]
    assert opened(write(table("image,label", *rows))).layout.classes == ("zoo", "airport")


def test_a_row_that_comes_again_counts_once_and_is_said(write: Callable[..., str]) -> None:
    uri = write(two_classes() + f"./{IMAGES[0]},cat\n")
    assert len(labels(uri)) == 8
    cfg = DataConfig(uri=uri)
    assert "labels: images listed again count once; that is 1 of the rows." in selection_remarks(
        cfg, read_manifest(prepare(cfg))
    )


BROKEN: dict[str, tuple[str, str]] = {
    "two labels": (
        two_classes() + f"{IMAGES[0]},dog\n",
        rf"labels.csv, line 10: {IMAGES[0]} has the label 'dog', but 'cat' in .*labels.csv, line 2; correct or remove",
    ),
    "two splits": (
        table("image,label,split", f"{IMAGES[0]},c,train", f"{IMAGES[1]},d,train", f"{IMAGES[0]},c,test"),
        "has the split 'test', but 'train' in .*line 2; splits must be disjoint",
    ),
    "one missing": (two_classes() + "photos/x.png,cat\n", "line 10: there is no photos/x.png in"),
    "some missing": (
        two_classes() + "".join(f"x{n}.png,cat\n" for n in range(30)),
        r"30 listed images are not in .*: x0.png \(.*line 10\), x1.png .* and 10 more. Restore",
    ),
    "no label": (two_classes() + f"./{IMAGES[0]},\n", rf"line 10: {IMAGES[0]} has no label. Fill it in"),
    "no labels": (
        two_classes(names=("cat", "")),
        rf"4 images have no label: {IMAGES[1]} \(.*line 3\), {IMAGES[3]} \(.*line 5\), .* Fill in",
    ),
    "a measure": (two_classes(names=("1.0", "2.0")), "line 2: expected a label that is a class name .*, found 1.0"),
    "below 0": (two_classes(names=("-1", "2")), "line 2: expected .* a whole number of 0 or more, found -1"),
    "no image": (two_classes() + ",cat\n", "line 10: '' names no image"),
    "one class": (two_classes(names=("cat", "cat")), "all training images are of one class, 'cat'"),
    "same number": (two_classes(names=("1", "01")), "'01' and '1' are the same number"),
    "cells": (two_classes() + "a,b,c\n", "line 10: 3 cells, but the header has 2"),
    "quote": (two_classes() + '"a"b,c\n', "line 10: no readable table"),
    "open quote": (two_classes() + '"a,c\n', "no readable table"),
    "header alone": ("image,label\n", "is empty; expected a header and a line for each image"),
    "split": (
        table("image,label,split", f"{IMAGES[0]},c,trian"),
        "line 2: split 'trian': there is no .* Did you mean train",
    ),
    "no split": (table("image,label,split", f"{IMAGES[0]},c,"), "line 2: split '': there is no such split"),
    "NUL": (two_classes() + "a\0b.png,cat\n", "line 10: 'a.x00b.png' names no image"),
    "no train": (table("image,label,split", f"{IMAGES[0]},c,test"), "has test but no training image"),
    "unseen": (
        table("image,label,split", f"{IMAGES[0]},c,train", f"{IMAGES[1]},d,train", f"{IMAGES[2]},e,test"),
        "has label e, which no training image has",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_a_sentence(write: Callable[..., str], case: str) -> None:
    text, words = BROKEN[case]
    refused(write(text), words)


def test_bytes_that_are_no_text(write: Callable[..., str], folder: Path) -> None:
    refused(write(two_classes().encode("utf-16")), "labels.csv is no readable list: byte 0 is no UTF-8")
    refused(write("a/1.png\n", "t.txt"), "t.txt, line 1: expected 'path label', found 'a/1.png'")
    (folder / "pipe.csv").symlink_to("/dev/zero")
    refused(str(folder / "pipe.csv"), "is no plain file")


COLUMNS: dict[str, tuple[str, dict[str, str], str]] = {
    "no image": (
        "a,label",
        {},
        r"no column is known for the image \(image, path, .*It has 'a', 'label'. Choose one: data.image",
    ),
    "no label": ("image,b", {}, "no column is known for the label .*It has 'image', 'b'.*without a header, add one"),
    "two": (
        "image,label,class",
        {},
        "columns 'label' and 'class' may both be the label. Choose one: data.label_column",
    ),
    "typed": (
        "image,specie",
        {"label_column": "species"},
        "data.label_column=species: .* Did you mean specie. It has 'image'",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_that_are_not_there(write: Callable[..., str], case: str) -> None:
    header, choices, words = COLUMNS[case]
    refused(write(table(header, "x" + ",y" * header.count(","))), words, ConfigError, **choices)


def test_columns_have_no_effect_elsewhere_and_that_is_said(
    folder: Path, write: Callable[..., str], small: Path
) -> None:
    for uri in (str(folder), "digits-glt", str(small)):
        with pytest.raises(ConfigError, match=r"data.label_column=x has no effect: .* is no table"):
            prepare(DataConfig(uri=uri, label_column="x"))
        with pytest.raises(
            ConfigError, match=r"data.label_key=x has no effect: .* is no set of WebDataset tars of others"
        ):
            prepare(DataConfig(uri=uri, label_key="x"))
    cfg = DataConfig(uri=write(two_classes("image,x")), label_column="x")
    assert on_other_data(cfg, str(folder)).label_column is None
    assert on_other_data(DataConfig(uri="a.tar", label_key="x"), str(folder)).label_key is None
    assert on_other_data(cfg, write(two_classes(), "other.csv")).label_column == "x"


def test_the_copy_is_made_again_when_anything_changes(write: Callable[..., str], folder: Path) -> None:
    uri = write(two_classes("image,x,label".replace("x,", "")))
    cfg = DataConfig(uri=uri)
    first = prepare(cfg)
    assert prepare(cfg) == first
    (folder / IMAGES[0]).write_bytes(tiny_png(99))
    second = prepare(cfg)
    write(two_classes(names=("cat", "cow")))
    assert len({first, second, prepare(cfg)}) == 3


def test_lists_and_tables_of_a_folder_take_names_and_columns(
    write: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    train, test = two_classes("f,label").splitlines(), "photos/6 a.png cat\nphotos/7 a.png dog\n"
    lists = [("train", write("\n".join(train[:7]), "a.csv")), ("test", write(test, "b.txt"))]
    cfg = DataConfig(uri=str(folder), image_column="f", val_per_class=0)
    manifest = make(cfg, str(tmp_path / "out"), lists=lists)
    assert manifest.classes == ("cat", "dog") and manifest.class_counts == {"train": (3, 3), "test": (1, 1)}


def test_a_table_alone_can_be_evaluated_on(write: Callable[..., str]) -> None:
    rows = table("image,label,split", *(f"{path},c,test" for path in IMAGES))
    cfg = DataConfig(uri=write(rows))
    assert read_manifest(prepare(cfg, needs_train=False)).class_counts == {"test": (8,)}


def test_places_are_recognized_by_what_is_there(folder: Path, write: Callable[..., str]) -> None:
    assert recognize(write(two_classes())) is recognize("x/list.txt.gz") is recognize("https://h/a.csv?raw=1") is Table
    assert recognize(str(folder)).__name__ == "ImageFolder"
    assert recognize("s3://bucket/a.zip").__name__ == "RemoteZip"


def test_addresses_may_have_a_query_or_no_ending(folder: Path, write: Callable[..., str]) -> None:
    """As links to images of a certain size have."""
    for n, path in enumerate(IMAGES):
        (folder / path).rename(folder / f"photos/{n}{'.png' if n % 3 else ''}")
    with served(folder) as web:
        rows = [f"{web}/photos/{n}{'.png?size=600' if n % 3 else ''},{n % 2}" for n in range(len(IMAGES))]
        samples = [row for rows in opened(write(table("image,label", *rows))).source().splits.values() for row in rows]
    assert {row.ext for row in samples} == {"png"} and len({row.key for row in samples}) == len(IMAGES)
    assert sorted(row.image for row in samples) == sorted(tiny_png(n) for n in range(len(IMAGES)))
