"""Folders and zips of images that lie in a store."""

from __future__ import annotations

from pathlib import Path

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.far_files import FarFiles
from ltcore.data.datasets.folder_layout import Layout
from ltcore.data.datasets.image_folder import ImageFolder, folders_identity, read_layout, refuse_legacy
from ltcore.data.datasets.image_root import Files, folders_around, open_root, sorted_out, without_images
from ltcore.data.datasets.lists import file_name
from ltcore.data.shards.source import Source
from ltcore.errors import ConfigError, DataError
from ltcore.owned_folder import TemporaryFolder
from ltcore.text import storable


class RemoteFolder(ImageFolder):
    """The images below a place in a store, by class folders or by list files; they are fetched several at a time."""

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        refuse_legacy(cfg)
        self.cfg, self.root = cfg, _folder(cfg.uri.rstrip("/"))
        self.layout = read_layout(self.root, cfg, lists, needs_train)
        self.name = storable(file_name(self.root.where))
        self.identity = folders_identity(cfg, self.root.fingerprint)

    @staticmethod
    def recognizes(uri: str) -> bool:
        return not storage.is_local(uri)


def _folder(uri: str) -> FarFiles:
    if storage.is_web(uri):
        raise ConfigError(
            f"{uri}: the web has no folders; expected the address of one file: .zip, .tar, .csv, .tsv, .txt or .parquet."
        )
    infos = {info.name: info for info in storage.describe_files(uri)}
    images, skipped = sorted_out(infos, ())
    root = FarFiles(uri, {name: storage.join(uri, name) for name in images}, infos)
    root.skipped, root.empty = skipped, without_images(folders_around(infos), images)
    return root


class RemoteZip(ImageFolder):
    """A zip of images in a store or in the web, which is fetched whole before it is read."""

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        refuse_legacy(cfg)
        if lists:
            Dataset.__init__(self, cfg, lists=lists)  # which refuses them
        found = storage.describe_file(cfg.uri)
        if found is None:
            raise DataError(f"{cfg.uri} does not exist. Check the address.")
        self.cfg, self._needs_train = cfg, needs_train
        self.name = storable(Path(file_name(cfg.uri)).stem)
        self.identity = folders_identity(cfg, f"{cfg.uri} {found.size} {found.version}")

    @staticmethod
    def recognizes(uri: str) -> bool:
        return not storage.is_local(uri) and file_name(uri).lower().endswith(".zip")

    def source(self) -> Source:
        if self.copy is None:
            self._fetch()
        return super().source()

    def files(self) -> tuple[Files, Layout] | None:
        if self.copy is None:
            self._fetch()
        return super().files()

    def _fetch(self) -> None:
        self.copy = TemporaryFolder(storage.cache_folder("downloads"), "zip-")
        path = self.copy.path / f"{self.name}.zip"
        storage.download(self.cfg.uri, path)
        self.root = open_root(str(path))
        self.root.where = self.cfg.uri
        self.layout = read_layout(self.root, self.cfg, (), self._needs_train)
