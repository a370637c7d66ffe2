"""Images in stores and in the web: the samples of a local copy, fetched several at a time, and one sentence for faults."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltcore import storage, uris
from ltcore.cli.prepare import storage_root
from ltcore.data.config import DataConfig
from ltcore.data.datasets import far_files
from ltcore.data.datasets.far_files import FarFiles
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.datasets.registry import recognize
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.publish import published
from ltcore.data.shards.source import Sample
from ltcore.errors import ConfigError, DataError
from ltcore.fsspec_stores import FileInfo
from ltcore.owned_folder import LOCK
from tests.data.small import tiny_png
from tests.data.web import served

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Twelve images of two classes, with a table, a zip and a parquet file of them."""
    root = tmp_path / "pets"
    for n in range(12):
        path = root / "images" / ("ant", "bee")[n % 2] / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_png(n))
    paths = sorted(root.rglob("*.png"))
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in paths]
    (root / "pets.csv").write_text("\n".join(["path,label", *rows]))
    shutil.make_archive(str(root / "pets"), "zip", root / "images")
    table = pa.table({"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]})
    (root / "hub").mkdir()
    pq.write_table(table, root / "hub" / "train-00000-of-00001.parquet")
    return root


@pytest.fixture
def memory(local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same in a store that fsspec opens."""
    monkeypatch.setitem(uris.READ_ONLY, "memory", "fsspec")
    store = fsspec.filesystem("memory")
    store.put(str(local), "/far/pets", recursive=True)
    yield "memory://far/pets"
    store.rm("/far", recursive=True)


PARTS = ["images", "pets.csv", "pets.zip", "hub", "hub/train-00000-of-00001.parquet"]


def read(uri: str) -> dict[str, list[Sample]]:
    source = recognize(uri)(DataConfig(uri=uri, val_per_class=0)).source()
    return {split: sorted(rows, key=lambda row: row.key) for split, rows in source.splits.items()}


def test_a_store_has_no_more_files_than_a_data_set(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(storage.list_files(f"{memory}/images"))
    monkeypatch.setattr(storage, "MAX_FILES", count)
    assert len(storage.list_files(f"{memory}/images")) == count
    monkeypatch.setattr(storage, "MAX_FILES", count - 1)
    with pytest.raises(
        DataError, match=rf"{memory}/images has more than {count - 1} files\. Make shards of its parts\.$"
    ):
        prepare(DataConfig(uri=f"{memory}/images"))


@pytest.mark.parametrize("part", PARTS)
def test_a_store_gives_what_a_disk_gives(local: Path, memory: str, part: str) -> None:
    near = read(str(local / part))
    assert read(f"{memory}/{part}") == near and len(near["train"]) == 10


def test_a_folder_in_a_store_is_read_as_one_on_a_disk(local: Path, memory: str) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/far/pets/images/README.md", b"pets")
    (local / "images" / "README.md").write_text("pets")
    (local / "images" / "ant" / "red").mkdir()
    (local / "images" / "ant" / "00.png").rename(local / "images" / "ant" / "red" / "00.png")
    store.mv("/far/pets/images/ant/00.png", "/far/pets/images/ant/red/00.png")
    found = []
    for uri in (f"{local}/images", f"{memory}/images"):
        with pytest.raises(DataError, match=r"ant/red/00.png lies deeper than .*data\.classes_from=depth"):
            prepare(DataConfig(uri=uri))
        found.append(read_manifest(prepare(DataConfig(uri=uri, classes_from="path"))))
    near, far = found
    assert near.classes == far.classes == ("ant", "ant/red", "bee")
    assert near.provenance["skipped"] == far.provenance["skipped"] == "1 file that is no image: README.md"
    with pytest.raises(ConfigError, match=r"data.classes_from=path is about folders of images; .*pets.csv has none"):
        prepare(DataConfig(uri=f"{memory}/pets.csv", classes_from="path"))


@pytest.mark.parametrize("part", ["images", "pets.csv"])
def test_a_broken_image_in_a_store_is_named_or_left_out(memory: str, part: str) -> None:
    fsspec.filesystem("memory").pipe("/far/pets/images/bee/01.png", b"no image")
    with pytest.raises(DataError, match=r"bee/01\.png: the image cannot be decoded"):
        prepare(DataConfig(uri=f"{memory}/{part}"))
    manifest = read_manifest(prepare(DataConfig(uri=f"{memory}/{part}", max_bad_samples=1)))
    assert [path[-10:] for path in manifest.provenance["broken"]] == ["bee/01.png"]
    assert sum(sum(counts) for counts in manifest.class_counts.values()) == 11


@pytest.mark.parametrize("part", PARTS)
def test_so_does_s3(local: Path, bucket: Bucket, part: str) -> None:
    for path in local.rglob("*"):
        if path.is_file():
            bucket.put(f"far/{path.relative_to(local)}", path.read_bytes())
    assert read(f"{bucket.uri}/far/{part}") == read(str(local / part))
    cfg = DataConfig(uri=f"{bucket.uri}/far/{part}", val_per_class=0)
    made = prepare(cfg)
    assert prepare(cfg) == made and read_manifest(made).split("train").num_samples == 10
    time.sleep(1.1)  # the store tells time in seconds
    for name in ("images/ant/00.png", "pets.zip", "hub/train-00000-of-00001.parquet"):
        bucket.put(f"far/{name}", bucket.get(f"far/{name}"))
    assert prepare(cfg) != made


@pytest.mark.parametrize("part", ["pets.csv", "pets.zip", "hub/train-00000-of-00001.parquet"])
def test_the_web_gives_single_files(local: Path, part: str) -> None:
    near = read(str(local / part))
    with served(local) as address:
        far = read(f"{address}/{part}?download=1")
        assert [row.image for row in far["train"]] == [row.image for row in near["train"]]
        with pytest.raises(ConfigError, match="the web has no folders; expected the address of one file"):
            read(f"{address}/images")
        with pytest.raises(DataError, match=r"none.zip\?x=1 does not exist"):
            read(f"{address}/none.zip?x=1")


def test_the_zip_is_fetched_only_when_the_copy_is_made(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(local) as address:
        cfg = DataConfig(uri=f"{address}/pets.zip")
        made = prepare(cfg)
        monkeypatch.setattr(storage, "download", lambda *args: pytest.fail("fetched again"))
        assert prepare(cfg) == made
    assert not list((storage.cache_root() / "downloads").iterdir())


def test_a_zip_that_a_killed_command_left_goes_when_the_next_one_is_fetched(local: Path) -> None:
    left = storage.cache_root() / "downloads" / "zip-of-a-killed-command"
    left.mkdir(parents=True)
    (left / LOCK).touch()
    (left / "pets.zip").write_bytes(b"gigabytes")
    with served(local) as address:
        prepare(DataConfig(uri=f"{address}/pets.zip"))
    assert not list((storage.cache_root() / "downloads").iterdir())


def test_lists_of_a_disk_choose_images_of_a_store(local: Path, memory: str, tmp_path: Path) -> None:
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        lines = [f"{('ant', 'bee')[n % 2]}/{n:02d}.png {n % 2}\n" for n in numbers]
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    lists = [(split, str(tmp_path / f"{split}.txt")) for split in ("train", "test")]
    manifest = make(DataConfig(uri=f"{memory}/images", val_per_class=0), str(tmp_path / "out"), lists=lists)
    assert manifest.class_counts == {"train": (4, 4), "test": (2, 2)} and manifest.classes == ("ant", "bee")


def test_a_table_may_name_images_of_a_store(memory: str, tmp_path: Path) -> None:
    rows = [f"{memory}/images/{('ant', 'bee')[n % 2]}/{n:02d}.png,{n % 2}" for n in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    found = read(str(tmp_path / "t.csv"))
    assert {row.image for part in found.values() for row in part} == {tiny_png(n) for n in range(12)}
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows, f"{memory}/images/x.png,0"]))
    with pytest.raises(DataError, match=r"line 14: there is no memory://far/pets/images/x.png"):
        read(str(tmp_path / "t.csv"))


def test_a_table_of_a_store_names_no_path_of_this_machine(memory: str) -> None:
    fsspec.filesystem("memory").pipe("/far/pets/evil.csv", b"path,label\n/etc/passwd,a\nimages/ant/00.png,b\n")
    with pytest.raises(DataError, match=r"evil.csv, line 2: /etc/passwd is a path of one machine"):
        read(f"{memory}/evil.csv")


@pytest.mark.parametrize(
    ("uri", "package"),
    [("hf://datasets/org/name", "huggingface_hub"), ("abfs://container@account.dfs.core.windows.net/x", "adlfs")],
)
def test_a_missing_package_is_named(uri: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(uri: str) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)
    with pytest.raises(ConfigError, match=rf":// needs the package {package} .*: pip install {package}\.$"):
        prepare(DataConfig(uri=uri))


def test_what_a_client_raises_is_one_sentence(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class DeniedError(Exception):
        """As those of Azure, which are no OSError."""

    def deny(*args: Any, **options: Any) -> None:
        raise DeniedError("403 for this key")

    for method, words in (("info", "cannot be looked up"), ("find", "cannot be"), ("_open", "cannot be")):
        with monkeypatch.context() as patch:
            patch.setattr(type(fsspec.filesystem("memory")), method, deny)
            with pytest.raises(DataError, match=rf"{memory}.* {words}.*403 for this key") as found:
                prepare(DataConfig(uri=f"{memory}/{'pets.csv' if method == '_open' else 'images'}"))
            assert "\n" not in str(found.value)


def test_these_stores_are_only_read(memory: str) -> None:
    with pytest.raises(ConfigError, match=r"memory:// is only read\. Write to a path, file://, s3:// or gs://\."):
        storage_root(f"{memory}/runs")
    with pytest.raises(ConfigError, match="is only read"), published(f"{memory}/out"):
        pytest.fail("published")


def far(count: int, size: int, monkeypatch: pytest.MonkeyPatch, fetch: Any) -> FarFiles:
    names = [f"{n:03d}" for n in range(count)]
    monkeypatch.setattr(FarFiles, "_fetch", fetch)
    return FarFiles("far", {n: f"s3://b/{n}" for n in names}, {n: FileInfo(n, size, "") for n in names})


def test_images_are_fetched_together_and_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8, timeout=10)

    def fetch(self: FarFiles, path: str) -> bytes:
        together.wait()  # each waits for seven others
        return path.encode()

    root = far(64, 10, monkeypatch, fetch)
    order = list(reversed(root.files))
    root.announce(order)
    assert [root.read(path).decode() for path in order] == order


@pytest.mark.parametrize(("size", "most"), [(2**20, 4), (2**30, 1), (-1, 2)])
def test_bytes_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch, size: int, most: int) -> None:
    monkeypatch.setattr(far_files, "HELD_BYTES", 4 * 2**20)
    started = list[str]()

    def fetch(self: FarFiles, path: str) -> bytes:
        started.append(path)
        return b""

    root = far(40, size, monkeypatch, fetch)
    if size < 0:
        monkeypatch.setattr(FarFiles, "_fetch_early", fetch)
    root.announce(root.files)
    for number, path in enumerate(root.files):
        root.read(path)
        assert len(started) <= number + 1 + most
    assert sorted(started) == list(root.files)
    assert root.read("007") == b"" and len(started) == 41  # out of turn


def test_a_failing_fetch_is_told_where_its_image_is_read(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: FarFiles, path: str) -> bytes:
        if path == "003":
            raise DataError("003 is gone")
        return b"x"

    root = far(6, 1, monkeypatch, fetch)
    root.announce(root.files)
    assert [root.read(path) for path in root.files[:3]] == [b"x"] * 3
    with pytest.raises(DataError, match="003 is gone"):
        root.read("003")
    assert root.read("004") == b"x"
