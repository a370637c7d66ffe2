"""A disk that is full while a data set is written: it is waited for, then the bytes are those of an empty one."""

from __future__ import annotations

import gc
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ltcore import retry
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make, prepare
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.data.datasets.workspace import here
from ltcore.data.glt.workspace import build
from ltcore.data.shards.validate import check_dataset
from ltcore.data.shards.writer import write_indexed
from ltcore.errors import DataError
from tests.conftest import make_tiny
from tests.data.glt_bar import no_bar
from tests.data.nested import flat_folder, nested_folder, nested_pool
from tests.faults import full_disk
from tests.tars import pictures, write_tars

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs a small disk of its own, which root mounts")

DISK_BYTES = 2**20
"""More than any data set here takes, with what lies beside it while it is made."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with full_disk(tmp_path / "disk", DISK_BYTES) as mounted:
        yield mounted
        gc.collect()  # where tars are unpacked to is open until nothing knows it, tracebacks of errors included


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.VARIABLE, "60")
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(retry, "_known", retry._Outages())


def fill(disk: Path, left: int) -> Path:
    """Leaves so many bytes free, in whole pages."""
    (ballast := disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return ballast


def freed(patch: pytest.MonkeyPatch, ballast: Path) -> None:
    """Frees the disk a second after somebody has begun to wait for it."""
    begin = iter([threading.Timer(1.0, ballast.unlink).start])
    patch.setitem(retry.listeners, "a test", lambda: next(begin, lambda: None)())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def waited(caplog: pytest.LogCaptureFixture) -> bool:
    said = [record.getMessage() for record in caplog.records if record.name == "ltcore.storage"]
    waits = [text for text in said if "No space left on device): waiting, up to 1 min" in text]
    return len(waits) > 0 and len(said) == 2 * len(waits)


@pytest.mark.parametrize("left", [0, 8192, 24_576, 40_960, 57_344])
def test_space_that_is_freed_gives_the_same_bytes(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    """It ends while images are gathered, in the middle of a tar, at an index, the labels or the manifest."""
    make_tiny(str(tmp_path / "whole"))
    freed(monkeypatch, fill(disk, left))
    make_tiny(str(disk / "d"))
    assert content(disk / "d") == content(tmp_path / "whole") and check_dataset(str(disk / "d")) == []
    assert waited(caplog) and [path.name for path in disk.iterdir()] == ["d"]


def test_every_file_of_a_data_set_waits(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits frees the disk; with the pages that were left, it is another file each time."""
    make_tiny(str(tmp_path / "whole"))
    whole, waits = content(tmp_path / "whole"), list[bool]()
    for left in range(0, 2**17, 16_384):
        ballast = fill(disk, left)
        with monkeypatch.context() as patch:
            patch.setitem(retry.listeners, "a test", partial(ballast.unlink, missing_ok=True))
            make_tiny(str(disk / "d"))
        waits.append(not ballast.exists())
        assert content(disk / "d") == whole, left
        ballast.unlink(missing_ok=True)
        shutil.rmtree(disk / "d")
    assert all(waits)


@pytest.mark.parametrize("left", [0, 24_576, 57_344])
def test_without_patience_it_is_one_sentence_and_nothing_is_left(
    disk: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setenv(retry.VARIABLE, "0.5")
    fill(disk, left)
    started = time.monotonic()
    with pytest.raises(
        DataError, match=r"disk/d cannot be written: .*No space left on device.*; it stayed so for"
    ) as found:
        make_tiny(str(disk / "d"))
    assert time.monotonic() - started >= 0.5 and "\n" not in str(found.value)
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_an_earlier_data_set_stays_where_patience_ends(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(str(disk / "d"), seed=1)
    before = content(disk / "d")
    monkeypatch.setenv(retry.VARIABLE, "0.5")
    fill(disk, 16_384)
    with pytest.raises(DataError, match="it stayed so for"):
        make_tiny(str(disk / "d"))
    assert content(disk / "d") == before and {path.name for path in disk.iterdir()} == {"ballast", "d"}


def test_so_does_what_is_made_for_a_run(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = DataConfig(uri=str(flat_folder(tmp_path)), val_per_class=1)
    make(cfg, str(tmp_path / "whole"))
    monkeypatch.setenv("LTCORE_CACHE", str(disk / "cache"))
    freed(monkeypatch, fill(disk, 8192))
    assert content(Path(prepare(cfg))) == content(tmp_path / "whole") and waited(caplog)


def indexes(folder: Path, packed: bool) -> Callable[[Path], None]:
    write_tars(folder / "train-%d.tar", pictures(40), maxcount=20)
    if packed:
        for file in folder.glob("*.tar"):
            with tarfile.open(f"{file}.gz", "w:gz") as out, tarfile.open(file) as source:
                for info in source:
                    out.addfile(info, source.extractfile(info))
            file.unlink()

    def write(to: Path) -> None:
        cfg = DataConfig(uri=str(folder), val_per_class=1)
        dataset = WebDataset(cfg)
        write_indexed(str(to), dataset.index(), seed=0)

    return write


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("left", [0, 8192])
def test_so_do_indexes_of_tars_and_what_they_are_unpacked_to(
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    packed: bool,
    left: int,
) -> None:
    (tmp_path / "tars").mkdir()
    write = indexes(tmp_path / "tars", packed)
    write(tmp_path / "whole")
    monkeypatch.setenv("LTCORE_CACHE", str(disk / "cache"))
    freed(monkeypatch, fill(disk, left))
    write(disk / "d")
    assert content(disk / "d") == content(tmp_path / "whole") and waited(caplog)


def glt(images: Path, to: Path) -> None:
    pool, choices = nested_pool(images)
    build(pool, choices, str(to), here, bar=no_bar)


@pytest.mark.parametrize("left", [16_384, 40_960])
def test_so_does_a_benchmark(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    images = nested_folder(tmp_path)
    glt(images, tmp_path / "whole")
    freed(monkeypatch, fill(disk, left))
    glt(images, disk / "d")
    assert content(disk / "d") == content(tmp_path / "whole") and waited(caplog)


def test_a_benchmark_without_patience_is_one_sentence_and_goes_on_later(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = nested_folder(tmp_path)
    glt(images, tmp_path / "whole")
    monkeypatch.setenv(retry.VARIABLE, "0.5")
    ballast = fill(disk, 40_960)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left on device.*; it stayed so for") as found:
        glt(images, disk / "d")
    assert "\n" not in str(found.value) and not (disk / "d").exists()
    ballast.unlink()
    glt(images, disk / "d")
    assert content(disk / "d") == content(tmp_path / "whole")


def test_a_data_set_for_a_store_waits_for_the_disk_on_which_it_is_made(
    disk: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny(str(tmp_path / "whole"))
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    freed(monkeypatch, fill(disk, 16_384))
    make_tiny(f"{bucket.uri}/d")
    assert content(bucket.download("d", tmp_path / "copy")) == content(tmp_path / "whole") and waited(caplog)
