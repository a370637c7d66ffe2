"""Makes a whole data set appear at once, or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs as pafs

from ltcore.data import storage
from ltcore.data.manifest import MANIFEST
from ltcore.errors import ConfigError

_OURS = re.compile(r"manifest\.json|[A-Za-z0-9_-]+-\d{5}\.(tar|parquet)")


@contextlib.contextmanager
def published(uri: str) -> Iterator[Path]:
    """A folder to write in, whose content appears at ``uri`` when the block ends well and vanishes when it fails."""
    _check_replaceable(uri)
    if storage.is_local(uri):
        target = storage.local_path(uri).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex}")
        aside.mkdir()
        try:
            yield aside
            _swap(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
            _upload(Path(temporary), uri)


def _check_replaceable(uri: str) -> None:
    """Refuses a place that holds anything but an earlier data set."""
    filesystem, path = storage.open_fs(uri)
    entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    foreign = sorted(entry.base_name for entry in entries if not _OURS.fullmatch(entry.base_name))
    if foreign:
        raise ConfigError(f"{uri} holds other files ({foreign[0]}, {len(foreign)} in all). Choose an empty place.")


def _swap(aside: Path, target: Path) -> None:
    """Puts the finished folder in its place; open files of the old one stay readable."""
    if target.exists():
        old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex}")
        target.rename(old)
        aside.rename(target)
        shutil.rmtree(old)
    else:
        aside.rename(target)
    storage.sync_folder(target.parent)


def _upload(folder: Path, uri: str) -> None:
    """Removes the old data set, manifest first, then copies the new one, manifest last: readers need the manifest."""
    filesystem, path = storage.open_fs(uri)
    old = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    for entry in sorted(old, key=lambda entry: entry.base_name != MANIFEST):
        filesystem.delete_file(entry.path)
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == MANIFEST, file.name)):
        pafs.copy_files(
            str(file),
            f"{path}/{file.name}",
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=filesystem,
        )
