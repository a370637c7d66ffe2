"""A cache folder in which nothing can be made: each part of the program that needs it says what to do."""

from __future__ import annotations

import errno
import fcntl
import shutil
from pathlib import Path

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make, open_dataset, prepare
from ltcore.errors import StorageError
from ltcore.models.timm_weights import Published, fetch
from ltcore.storage import cache_folder
from ltcore.training.run import scratch_dir
from ltcore.training.weights_file import node_file
from tests.data.small import tiny_png
from tests.faults import unwritable


def test_a_sentence_names_the_variable(
    tmp_path: Path, small: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pets"
    for n in range(20):
        file = folder / ("ant", "bee")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_png(n))
    shutil.make_archive(str(small / "pets"), "zip", folder)
    cfg, far = DataConfig(uri=str(folder)), DataConfig(uri=f"{remote}/pets.zip")
    nowhere = Published("resnet18", "timm/none", None, ("none.safetensors",), "")
    uses = {
        "datasets": lambda: prepare(cfg),
        "building": lambda: make(cfg, str(tmp_path / "shards")),
        "downloads": lambda: open_dataset(far).source(),
        "weights": lambda: node_file(f"{remote}/manifest.json"),
        "weights ": lambda: fetch(nowhere, "model.weights=pretrained", "resnet18"),
        "runs": lambda: scratch_dir(f"{remote}/run"),
    }
    with unwritable(tmp_path / "place") as place:
        monkeypatch.setenv("LTCORE_CACHE", str(place / "cache"))
        for name, use in uses.items():
            with pytest.raises(StorageError, match=rf"cache/{name.strip()} cannot be written: .*set LTCORE_CACHE"):
                use()
        assert scratch_dir(str(tmp_path / "run"))  # which works in the run's own folder
        monkeypatch.setenv("LTCORE_CACHE", str(place))  # a folder that is there
        with pytest.raises(StorageError, match=r"place cannot be written: .*set LTCORE_CACHE"):
            cache_folder()
    assert not (tmp_path / "shards").exists()


def test_so_it_does_of_a_lock_that_cannot_be_had(tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system without locks, or beside a lock file of another user."""
    folder = tmp_path / "pets"
    for n in range(20):
        file = folder / ("ant", "bee")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_png(n))

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    cfg = DataConfig(uri=str(folder))
    for use in (
        lambda: prepare(cfg),
        lambda: make(cfg, str(tmp_path / "shards")),
        lambda: node_file(f"{remote}/manifest.json"),
    ):
        with pytest.raises(StorageError, match=r"No locks available.*set LTCORE_CACHE"):
            use()
