"""Samples in tars of others: what counts as key, image and label, and what is said of a sample that lacks one."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ltcore.data.datasets import tar_samples
from ltcore.data.datasets.tar_samples import TarRows, read_rows
from ltcore.data.shards.stream import HashedStream
from ltcore.errors import DataError
from tests.tars import picture, write_tar

PNG, OTHER = picture(0, 0), picture(1, 1)
Members = list[tuple[str, bytes]]


def rows(path: Path, label_key: str | None = None) -> TarRows:
    data = path.read_bytes()
    with ThreadPoolExecutor(2) as pool:
        found = read_rows(HashedStream(io.BytesIO(data)), len(data), "a.tar", label_key, pool)
    for row in found.rows:
        assert data[row.offset : row.offset + row.size] in (PNG, OTHER)
    return found


def good(tmp_path: Path, members: Members, label_key: str | None = None, form: int = tarfile.USTAR_FORMAT) -> Members:
    """Key and label of each sample; none may be bad."""
    write_tar(tmp_path / "a.tar", members, form)
    found = rows(tmp_path / "a.tar", label_key)
    assert not found.bad
    return [(row.key, row.label) for row in found.rows]


def bad(tmp_path: Path, members: Members, label_key: str | None = None) -> dict[str, str]:
    write_tar(tmp_path / "a.tar", members)
    return dict(rows(tmp_path / "a.tar", label_key).bad)


@pytest.mark.parametrize(
    ("members", "samples"),
    [
        ([("0.png", PNG), ("0.cls", b"3")], [("0", "3")]),
        ([("0.cls", b" 07\n"), ("0.PNG", PNG)], [("0", "7")]),
        ([("./a/0.png", PNG), ("./a/0.cls", b"1")], [("a/0", "1")]),
        ([("a/", b""), ("a/0.png", PNG), ("a/0.cls", b"1")], [("a/0", "1")]),
        ([("0.jpeg", PNG), ("0.cls", b"tabby cat")], [("0", "tabby cat")]),
        ([("0.cls", "größe".encode()), ("0.png", PNG)], [("0", "größe")]),
        ([("0.png", PNG), ("0.json", b'{"label": 4}'), ("0.txt", b"a cat")], [("0", "4")]),
        ([("0.png", PNG), ("0.json", b'{"label": 4}'), ("0.cls", b"5")], [("0", "5")]),
        ([("0.jpg", PNG), ("0.seg.png", OTHER), ("0.cls", b"1")], [("0", "1")]),
        ([("0.png", OTHER), ("0.jpg", PNG), ("0.cls", b"1")], [("0", "1")]),
        ([("0.input.jpg", PNG), ("0.output.cls", b"1")], [("0", "1")]),
        ([("0.png", PNG), ("0.npy", b"x" * 9999), ("0.cls", b"1")], [("0", "1")]),
        (
            [("v1.0.png", PNG), ("v1.0.cls", b"0"), ("v1.1.png", OTHER), ("v1.1.cls", b"1")],
            [("v1.0", "0"), ("v1.1", "1")],
        ),
        ([("a.b.c.png", PNG), ("a.b.c.cls", b"0")], [("a.b.c", "0")]),
        ([("0.png", PNG), ("1.png", OTHER), ("1.cls", b"1"), ("0.cls", b"0")], [("0", "0"), ("1", "1")]),
        (
            [
                ("._0.png", b"x"),
                ("__meta__", b"x"),
                ("__info__.json__", b"x"),
                ("README.md", b"x"),
                ("0.png", PNG),
                ("0.cls", b"0"),
            ],
            [("0", "0")],
        ),
    ],
)
def test_what_a_sample_is(tmp_path: Path, members: Members, samples: list[tuple[str, str]]) -> None:
    assert good(tmp_path, members) == samples


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_gnu_and_pax_headers(tmp_path: Path, form: int) -> None:
    key = "folder/" * 30 + "größe" + "k" * 120
    assert good(tmp_path, [(f"{key}.png", PNG), (f"{key}.cls", b"1")], form=form) == [(key, "1")]


@pytest.mark.parametrize(
    ("value", "key", "label"),
    [
        ({"label": "cat"}, None, "cat"),
        ({"label": "12"}, None, "12"),
        ({"meta": {"class": {"id": 3}}}, "meta.class.id", "3"),
        ({"a.b": 1, "species": "tabby"}, "species", "tabby"),
    ],
)
def test_labels_in_json(tmp_path: Path, value: object, key: str | None, label: str) -> None:
    members = [("0.png", PNG), ("0.json", json.dumps(value).encode())]
    assert good(tmp_path, members, key) == [("0", label)]
    assert good(tmp_path, [*members, ("0.cls", b"99")], key) == [("0", label if key else "99")]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("0.png", PNG)], "has no label (it has .png; expected .cls or .json)"),
        ([("0.cls", b"1"), ("0.txt", b"")], "has no image (it has .cls, .txt)"),
        ([("0.png", b"no image"), ("0.cls", b"1")], "the image cannot be decoded"),
        ([("0.png", b""), ("0.cls", b"1")], "the image has 0 bytes"),
        ([("0.png", PNG), ("0.cls", b"")], ".cls is empty"),
        ([("0.png", PNG), ("0.cls", b"-1")], ".cls has the label -1, expected a number from 0 on"),
        ([("0.png", PNG), ("0.cls", b"9" * 30)], "expected a number from 0 on"),
        ([("0.png", PNG), ("0.cls", b"\xff\xfe")], ".cls is no text in UTF-8"),
        ([("0.png", PNG), ("0.cls", b"c" * 2000)], ".cls has 2000 bytes, expected a label of at most 1024"),
        ([("0.png", PNG), ("0.json", b'{"id": 1}')], ".json has no 'label'"),
        ([("0.png", PNG), ("0.json", b"[" * 10**5)], ".json is no JSON"),
        (
            [("0.png", PNG), ("0.json", b'{"label": [1, 2]}')],
            ".json has '[1, 2]' as 'label', expected a number or a name",
        ),
        ([("0.png", PNG), ("0.json", b'{"label": 1.5}')], "expected a number or a name"),
        ([("0.png", PNG), ("0.json", b'{"label": true}')], "expected a number or a name"),
        ([("0.png", PNG), ("0.json", b'{"label": ' + b"9" * 4000 + b"}")], "expected a number from 0 on"),
        ([("0.png", PNG), ("0.json", b" " * 2**20 + b"{}")], "expected at most 1048576"),
        ([("0.left.png", PNG), ("0.right.png", OTHER), ("0.cls", b"1")], "has several images or labels"),
        ([("0.png", PNG), ("0.png", OTHER), ("0.cls", b"1")], "has .png twice"),
        ([("0" * 60 + "/" + "1.png", PNG)] * 2, "has no label"),
    ],
)
def test_what_is_said_of_a_bad_sample(tmp_path: Path, members: Members, words: str) -> None:
    (problem,) = bad(tmp_path, [*members, ("good.png", PNG), ("good.cls", b"0")]).values()
    assert words in problem


def test_names_and_numbers_of_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "k" * 2000
    write_tar(tmp_path / "a.tar", [(f"{key}.png", PNG), (f"{key}.cls", b"1")], tarfile.PAX_FORMAT)
    ((_, problem),) = rows(tmp_path / "a.tar").bad
    assert problem == "has a name of 2000 characters, expected at most 1024"
    monkeypatch.setattr(tar_samples, "MAX_SAMPLE_FILES", 10)
    many = bad(tmp_path, [("0.png", PNG), ("0.cls", b"1"), *((f"0.x{n}", b"") for n in range(20))])
    assert many == {"0": "has more than 10 files"}
    monkeypatch.setattr(tar_samples, "MAX_IMAGE_BYTES", 20)
    assert bad(tmp_path, [("0.png", PNG), ("0.cls", b"1")])["0"].startswith("has an image of ")


def test_memory_is_bounded_by_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_samples, "CHUNK", 2)
    samples = [(f"{n}", str(n)) for n in range(5)]
    members = [member for key, label in samples for member in ((f"{key}.png", PNG), (f"{key}.cls", label.encode()))]
    assert good(tmp_path, members) == samples


def test_a_link_is_no_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        info = tarfile.TarInfo("0.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    assert rows(tmp_path / "a.tar").bad == [("0", "has no image (it has .cls)")]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_a_tar_that_is_cut_off_is_an_error(tmp_path: Path, keep: float) -> None:
    write_tar(
        tmp_path / "a.tar", [(f"{n}.{ext}", data) for n in range(9) for ext, data in (("png", PNG), ("cls", b"1"))]
    )
    data = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(
        DataError, match=r"^a\.tar: .*(ends after|no end mark|a header of).*Copy or download it again\.$"
    ):
        rows(tmp_path / "a.tar")
