"""Tars that somebody else wrote for WebDataset: indexed once, and trained on where they lie.

Indexing reads every byte of every tar once: the sha256 of a tar and the crc32 of an image, which later reads are held
against, need all of them, and so does decoding each image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.folder_layout import split_of
from ltcore.data.datasets.image_folder import refuse_legacy
from ltcore.data.datasets.tar_classes import Classes
from ltcore.data.datasets.tar_collection import Collection, ReadTar, collect
from ltcore.data.datasets.tar_files import TarFile, is_packed, unpacked
from ltcore.data.datasets.tar_places import Tar, find_tars, means_tars
from ltcore.data.datasets.tar_samples import TarRows, read_rows
from ltcore.data.shards.source import Indexed, Source
from ltcore.data.shards.stream import open_hashed
from ltcore.errors import DataError
from ltcore.limits import MAX_ROWS, too_many
from ltcore.owned_folder import TemporaryFolder

TAR_THREADS = 8
PROGRESS_S = 1.0
_REST_BYTES = 2**20

OnProgress = Callable[[str], None]


class WebDataset(Dataset):
    """Tars of samples with an image and a label each."""

    by_path = by_pattern = has_label_key = True

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        super().__init__(cfg, lists=lists, needs_train=needs_train)
        refuse_legacy(cfg)
        self.tars = find_tars(cfg.uri, needs_train=needs_train)
        self.classes = Classes.beside(self.tars[0].base, cfg.label_key)
        self.name = _name(self.tars)
        found = [(tar.base, tar.path, tar.bytes, tar.changed, tar.split) for tar in self.tars]
        choices = [cfg.label_key, self.classes.names]
        self.identity = hashlib.sha256(json.dumps([found, choices]).encode()).hexdigest()
        self._workspace: TemporaryFolder | None = None  # goes with this object

    @staticmethod
    def recognizes(uri: str) -> bool:
        return means_tars(uri)

    def index(self, progress: OnProgress | None = None) -> Indexed:
        return self._collection(progress or _quiet).indexed()

    def source(self) -> Source:
        return self._collection(_quiet).source()

    def _collection(self, progress: OnProgress) -> Collection:
        """Reads all tars, several at a time."""
        packed = [tar for tar in self.tars if is_packed(tar)]
        if packed:
            progress(f"{self.name}: unpacking {len(packed)} compressed tars once, as they cannot be read at offsets")
            self._workspace = TemporaryFolder(storage.cache_folder(), "unpacked-")
        with ThreadPoolExecutor() as decoders, ThreadPoolExecutor(TAR_THREADS) as readers:
            jobs = readers.map(self._read, itertools.count(), self.tars, itertools.repeat(decoders))
            try:
                found = list(_told(jobs, len(self.tars), self.name, progress))
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)  # else the tars that are left would be read first
                raise
        broken = [one.broken for one in found if one.broken]
        if broken:
            others = f" {len(broken) - 1} more tars are broken as well." if len(broken) > 1 else ""
            raise DataError(f"{broken[0]}{others}")
        return collect(self.name, found, self.classes, self.cfg, progress)

    def _read(self, number: int, tar: Tar, decoders: Executor) -> ReadTar:
        try:
            file = TarFile(tar, tar.bytes)
            if self._workspace is not None and is_packed(tar):
                file = unpacked(tar, self._workspace.path / f"unpacked-{number:05d}.tar")
            with open_hashed(file.uri) as stream:
                rows = read_rows(stream, file.num_bytes, tar.uri, self.cfg.label_key, decoders)
                while rest := stream.read(_REST_BYTES):
                    if rest.strip(b"\0"):
                        raise DataError(
                            f"{tar.uri} goes on after its end mark, where no reader of tars looks. Are these several in "
                            "one file? Make one of them with tar --concatenate, or keep them apart."
                        )
                count, sha256 = stream.finish()
            if count != file.num_bytes:
                raise DataError(
                    f"{tar.uri} had {file.num_bytes} bytes and now has {count}: it changes. Run again later."
                )
        except DataError as error:
            return ReadTar(TarFile(tar, 0), "", TarRows(), str(error))
        return ReadTar(file, sha256, rows)


def _quiet(_: str) -> None:
    """Tells nobody."""


def _told(found: Iterator[ReadTar], total: int, name: str, progress: OnProgress) -> Iterator[ReadTar]:
    """Passes the tars on and tells how many there are. Raises DataError where they have more samples than any data set."""
    told, images, samples = time.monotonic(), 0, 0
    for count, one in enumerate(found, 1):
        images += len(one.rows.rows)
        samples += len(one.rows.rows) + len(one.rows.bad)
        if samples > MAX_ROWS:
            raise too_many(MAX_ROWS, name, "samples")
        if time.monotonic() - told > PROGRESS_S or count == total:
            progress(f"indexing {name}: {count:,} of {total:,} tars, {images:,} images")
            told = time.monotonic()
        yield one


def _name(tars: Sequence[Tar]) -> str:
    """Returns the name of the only tar, or of the nearest folder whose name is not that of a split."""
    parts = [part for part in tars[0].base.partition("://")[2 if "://" in tars[0].base else 0].split("/") if part]
    named = [part for part in parts if not split_of(part)]
    name = posixpath.basename(tars[0].stem) if len(tars) == 1 else (named or ["tars"])[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:60] or "tars"
