"""Where a data set is written, nothing of anybody else's goes: on a disk and in an object store."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from ltcore import lease, storage, stores
from ltcore.data.datasets.prepare import is_shards
from ltcore.data.shards import publish, writer
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.data.shards.source import Sample
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import ConfigError, DataError
from ltcore.owned_folder import LOCK
from tests.data.small import tiny_png, write_small
from tests.paths import ROOT
from tests.shards import write_dataset

Place = tuple[str, Path]
"""URI, and the folder in which its files really are."""


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    (tmp_path / "bucket").mkdir()
    if request.param == "disk":
        return str(tmp_path / "bucket" / "d"), tmp_path / "bucket" / "d"
    fake = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(stores, "_remote_fs", lambda *_: fake)
    (tmp_path / "bucket" / "d" / lease.FOLDER).mkdir(
        parents=True
    )  # the fake has folders, which object stores do not need
    return "s3://bucket/d", tmp_path / "bucket" / "d"


def write(uri: str, samples: Iterator[Sample], progress: Callable[[str], None] | None = None) -> None:
    fixed: dict[str, Any] = {"image_size": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3, "seed": 0, "shot_rule": "count"}
    write_dataset(
        uri,
        name="new",
        classes=["a"],
        attributes=[],
        splits={"train": samples},
        provenance={},
        progress=progress,
        **fixed,
    )


def one() -> Iterator[Sample]:
    yield Sample("k", tiny_png(9), "png", 0)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN: dict[str, tuple[dict[str, bytes], str]] = {
    "tars of somebody": (
        {"openimages-00000.tar": b"1", "openimages-00001.tar": b"2"},
        "openimages-00000.tar, 2 in all",
    ),
    "a folder with a tar's name": ({"backup-00002.tar/thesis.tex": b"3"}, "backup-00002.tar, 1 in all"),
    "an index alone": ({"train-00000.parquet": b"4"}, "train-00000.parquet, 1 in all"),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a data set"])
@pytest.mark.parametrize("case", FOREIGN)
def test_files_that_no_manifest_names_stay_and_stop_it_before_an_image_is_read(
    place: Place, case: str, beside: bool
) -> None:
    uri, folder = place
    files, named = FOREIGN[case]
    if beside:
        write_small(uri)
        files = {name.replace("train-00000", "train-00001"): data for name, data in files.items()}
        named = named.replace("train-00000", "train-00001")
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    before = content(folder)

    def samples() -> Iterator[Sample]:
        raise AssertionError("read")
        yield

    with pytest.raises(ConfigError, match=rf"holds other files \({named}\), which no manifest.json there names"):
        write(uri, samples())
    assert content(folder) == before


def test_what_comes_while_images_are_read_stays_as_well(place: Place) -> None:
    uri, folder = place
    write_small(uri)
    before = content(folder)

    def samples() -> Iterator[Sample]:
        yield from one()
        (folder / "train-00007.tar").write_bytes(b"of a colleague")

    with pytest.raises(ConfigError, match=r"holds other files \(train-00007.tar"):
        write(uri, samples())
    assert content(folder) == before | {"train-00007.tar": b"of a colleague"}


def test_an_earlier_data_set_goes_and_it_is_said(place: Place) -> None:
    uri, folder = place
    said: list[str] = []
    write(uri, one(), said.append)
    assert said == []
    write_small(uri)
    write(uri, one(), said.append)
    assert said == [f"replacing the data set at {uri} (4 files)"]
    assert read_manifest(uri).name == "new" and len(content(folder)) == 4
    assert [path.name for path in folder.parent.iterdir()] == ["d"]


@pytest.mark.parametrize("place", ["object store"], indirect=True)
def test_in_a_store_the_same_data_set_stays_as_it_is_and_what_is_damaged_of_it_is_mended(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = place
    write(uri, one())
    before, said = content(folder), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(pafs, "copy_files", lambda *_, **__: pytest.fail("written again"))
        write(uri, one(), said.append)
    assert said == [f"the same data set is at {uri} already; nothing is replaced"] and content(folder) == before
    (folder / "train-00000.tar").write_bytes(b"damaged")
    (folder / "train-00000.parquet").unlink()
    remove = storage.remove
    monkeypatch.setattr(storage, "remove", lambda each, _: remove(each) if each.endswith(publish.PARTIAL) else 1 / 0)
    write(uri, one(), said.append)
    assert said[1:] == [f"replacing the data set at {uri} (3 files)"] and content(folder) == before


@pytest.mark.parametrize("place", ["object store"], indirect=True)
@pytest.mark.parametrize("gone", [publish.PARTIAL, MANIFEST])
def test_a_process_that_begins_or_ends_at_the_same_place_meanwhile_is_no_damage(
    place: Place, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    uri, folder = place
    write(uri, one())
    before, entries = content(folder), storage.entries
    seen = [{**entries(uri), gone: True}]
    if gone == MANIFEST:
        (folder / gone).rename(folder / publish.PARTIAL)
        (folder / publish.PARTIAL).write_text(json.dumps([*before, publish.PARTIAL]))
    monkeypatch.setattr(storage, "entries", lambda each: seen.pop() if seen else entries(each))
    write(uri, one())
    assert content(folder) == before


@pytest.mark.parametrize("place", ["object store"], indirect=True)
def test_nor_is_one_that_replaces_it_while_it_is_compared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, folder = place
    write(uri, one())
    before, hashed = content(folder), publish._hash

    def replaced(file: str) -> str:
        monkeypatch.setattr(publish, "_hash", hashed)
        write_small(uri)
        raise DataError(f"{file} was replaced while it was read.")

    monkeypatch.setattr(publish, "_hash", replaced)
    write(uri, one())
    assert content(folder) == before


def test_a_data_set_whose_files_nobody_knows_is_not_replaced(place: Place) -> None:
    uri, folder = place
    write_small(uri)
    (folder / MANIFEST).write_bytes(b"{")
    before = content(folder)
    with pytest.raises(
        ConfigError, match=r"a damaged data set, of which nobody knows the files .*Choose an empty place"
    ):
        write(uri, one())
    assert content(folder) == before


@pytest.mark.parametrize("place", ["object store"], indirect=True)  # on a disk one rename does it at once
@pytest.mark.parametrize("after", range(4))
def test_a_killed_upload_is_done_again_over_what_it_left(
    place: Place, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = place
    write_small(uri)
    copy_files, copied = pafs.copy_files, list[str]()

    def dies(source: str, *args: Any, **options: Any) -> None:
        if len(copied) == after:
            raise OSError("connection lost")
        copied.append(source)
        copy_files(source, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pafs, "copy_files", dies)
        with pytest.raises(DataError, match="connection lost"):
            write(uri, one())
    with pytest.raises(DataError, match=r"manifest.json does not exist"):
        read_manifest(uri)
    assert publish.PARTIAL in content(folder)
    write(uri, one())
    assert read_manifest(uri).name == "new" and len(content(folder)) == 4


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write_small(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    write(str(tmp_path / "link"), one())
    assert (tmp_path / "link").is_symlink() and read_manifest(str(tmp_path / "real")).name == "new"


POINTS = ("in a shard", "before", "between", "after")
"""Of a replacement: while the new data set is made, and around the two renames."""


def interrupt(patch: pytest.MonkeyPatch, at: str, strike: Callable[[], None]) -> None:
    """Strikes where a data set is replaced."""
    if at == "in a shard":
        patch.setattr(writer, "write_manifest", lambda *_: strike())
        return
    rename = Path.rename

    def struck(self: Path, target: Path) -> Path:
        is_first, is_last = Path(target).name == "old", self.name == "new"
        if (is_first and at == "before") or (is_last and at == "between"):
            strike()
        moved = rename(self, target)
        if is_last and at == "after":
            strike()
        return moved

    patch.setattr(Path, "rename", struck)


@pytest.mark.parametrize("at", POINTS)
def test_an_interrupted_replacement_leaves_one_whole_data_set_and_nothing_else(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path / "d")

    def strike() -> None:
        raise KeyboardInterrupt

    interrupt(monkeypatch, at, strike)
    with pytest.raises(KeyboardInterrupt):
        write(str(tmp_path / "d"), one())
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert read_manifest(str(tmp_path / "d")).name == ("new" if at == "after" else "small")
    assert check_dataset(str(tmp_path / "d")) is not None and len(content(tmp_path / "d")) == 4


KILLED = """
import os, signal, sys
import pytest
from tests.data.shards.test_publish import interrupt, one, write
interrupt(pytest.MonkeyPatch(), sys.argv[1], lambda: os.kill(os.getpid(), signal.SIGKILL))
write(sys.argv[2], one())
"""


@pytest.mark.parametrize(
    "at",
    [point if point in ("in a shard", "between") else pytest.param(point, marks=pytest.mark.slow) for point in POINTS],
)
def test_a_killed_one_is_settled_by_whoever_comes_next(tmp_path: Path, at: str) -> None:
    uri = str(tmp_path / "d")
    write_small(uri)
    command = [sys.executable, "-c", KILLED, at, uri]
    assert (
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == -signal.SIGKILL
    )
    assert (tmp_path / "d").exists() == (at != "between") and len(list(tmp_path.glob(".d.partial-*"))) == 1
    assert is_shards(uri) and read_manifest(uri).name == ("new" if at == "after" else "small")
    assert len(content(tmp_path / "d")) == 4
    write(str(tmp_path / "another"), one())  # it is its folder that is looked through
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "d"]


def test_a_finished_folder_replaces_what_a_killed_process_had_moved_aside(tmp_path: Path) -> None:
    write(str(tmp_path / "made"), one())
    write_small(tmp_path / ".d.partial-0" / "old")
    (tmp_path / ".d.partial-0" / LOCK).touch()
    publish.publish(tmp_path / "made", str(tmp_path / "d"))
    assert read_manifest(str(tmp_path / "d")).name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_nor_is_one_disturbed_that_goes_on(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        (partial,) = tmp_path.glob(".d.partial-*")
        with pytest.raises(DataError, match="does not exist"):
            read_manifest(str(tmp_path / "d"))
        write_small(tmp_path / "another")
        assert partial.is_dir()
        yield from one()

    write(str(tmp_path / "d"), samples())
    assert read_manifest(str(tmp_path / "d")).name == "new"


def test_what_comes_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path / "d")
    before = content(tmp_path / "d")
    interrupt(monkeypatch, "before", lambda: (tmp_path / "d" / "thesis.pdf").touch())
    with pytest.raises(ConfigError, match=r"d holds other files \(thesis\.pdf, 1 in all\)"):
        write(str(tmp_path / "d"), one())
    assert content(tmp_path / "d") == before | {"thesis.pdf": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_disk_without_locks_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    write(str(tmp_path / "d"), one())
    assert [path.name for path in tmp_path.iterdir()] == ["d"] and read_manifest(str(tmp_path / "d")).name == "new"


def in_the_middle(uri: str, patch: pytest.MonkeyPatch, strike: Callable[[], None]) -> None:
    """Strikes once, where the data set at ``uri`` is half replaced."""
    left = [strike]

    def once() -> None:
        if left:
            left.pop()()

    if storage.is_local(uri):
        interrupt(patch, "between", once)
        return
    copy_files = pafs.copy_files

    def struck(*args: Any, **options: Any) -> None:
        copy_files(*args, **options)
        once()

    patch.setattr(pafs, "copy_files", struck)


def another() -> Iterator[Sample]:
    yield Sample("another", tiny_png(7), "png", 0)


def test_who_comes_in_the_middle_of_a_replacement_waits_for_its_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri, folder = place
    write_small(uri)
    write(str(tmp_path / "expected"), another())
    monkeypatch.setattr(lease.random, "uniform", lambda low, high: 0.05)
    said, second = list[str](), list[Future[None]]()
    with ThreadPoolExecutor(1) as pool:

        def comes() -> None:
            second.append(pool.submit(write, uri, another(), said.append))
            with pytest.raises(TimeoutError):
                second[0].result(timeout=0.5)

        in_the_middle(uri, monkeypatch, comes)
        write(uri, one())
        second[0].result()
    assert content(folder) == content(tmp_path / "expected")
    assert said[-1] == f"replacing the data set at {uri} (4 files)"
    if not storage.is_local(uri):
        assert said[0].startswith(f"{uri} is in use by process {os.getpid()} of this machine, since ")
        assert said[0].endswith("; waiting for it to end")


def test_what_goes_back_does_so_before_another_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the file that came at the last moment would go with the data set that is replaced."""
    uri, second = str(tmp_path / "d"), list[Future[None]]()
    write_small(uri)
    refuse = publish._refuse_foreign
    with ThreadPoolExecutor(1) as pool:

        def comes(uri: str, names: Collection[str]) -> None:
            if names and not second:
                second.append(pool.submit(write, uri, another()))
                with pytest.raises(TimeoutError):
                    second[0].result(timeout=0.5)
            refuse(uri, names)

        interrupt(monkeypatch, "before", (tmp_path / "d" / "thesis.pdf").touch)
        monkeypatch.setattr(publish, "_refuse_foreign", comes)
        for act in (lambda: write(uri, one()), lambda: second[0].result()):
            with pytest.raises(ConfigError, match=r"holds other files \(thesis\.pdf, 1 in all\)"):
                act()
    assert (tmp_path / "d" / "thesis.pdf").exists() and read_manifest(uri).name == "small"


@pytest.mark.parametrize("place", ["object store"], indirect=True)
def test_an_upload_asks_before_each_change_whether_the_place_is_still_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = place
    write_small(uri)

    def state() -> dict[str, bytes]:
        return {name: data for name, data in content(folder).items() if not name.startswith(lease.FOLDER)}

    states, first = list[dict[str, bytes]](), state()
    monkeypatch.setattr(lease.Lease, "check", lambda _: states.append(state()))
    write(uri, one())
    states.append(state())
    assert states[0] == first
    for before, after in itertools.pairwise(states):
        assert len({name for name, _ in before.items() ^ after.items()}) == 1


@pytest.mark.parametrize("place", ["object store"], indirect=True)
def test_an_upload_that_lost_its_place_leaves_it_to_the_other_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = place
    write_small(uri)
    there = dict[str, bytes]()

    def lost() -> None:
        there.update(content(folder))
        lease._held[uri]._taken = True

    in_the_middle(uri, monkeypatch, lost)
    with pytest.raises(DataError, match=f"{uri} was taken over by another process"):
        write(uri, one())
    assert {name for name, _ in there.items() ^ content(folder).items()} <= {
        name
        for name in there
        if name.startswith(lease.FOLDER)  # its own claim
    }


KILLED_UPLOAD = """
import os, signal, sys
import pytest
from pyarrow import fs as pafs
from ltcore import stores
from tests.data.shards.test_publish import in_the_middle, one, write
fake = pafs.SubTreeFileSystem(sys.argv[1], pafs.LocalFileSystem())
stores._remote_fs = lambda *_: fake
in_the_middle("s3://bucket/d", pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL))
write("s3://bucket/d", one())
"""


@pytest.mark.parametrize("place", ["object store"], indirect=True)
def test_the_lease_of_a_killed_upload_is_void_and_no_part_of_the_data_set(place: Place, tmp_path: Path) -> None:
    uri, folder = place
    write_small(uri)
    before = check_dataset(uri)
    command = [sys.executable, "-c", KILLED_UPLOAD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (claim,) = (folder / lease.FOLDER).iterdir()
    said = list[str]()
    write_small(uri)
    assert not claim.exists() and check_dataset(uri) == before
    claim.write_bytes(b"{}")
    assert check_dataset(uri) == before
    claim.unlink()
    write(uri, one(), said.append)
    assert said == [f"replacing the data set at {uri} (4 files)"]
