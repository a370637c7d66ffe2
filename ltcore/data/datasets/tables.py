"""Images that a list, or a csv or tsv with a header, names: beside it, or anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from ltcore import storage
from ltcore.data.config import COLUMN_KEYS, DataConfig
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.far_files import FarFiles, look_up, normal_path, place_of
from ltcore.data.datasets.folder_layout import Layout
from ltcore.data.datasets.image_folder import ImageFolder, refuse_legacy
from ltcore.data.datasets.json_lists import listed_rows
from ltcore.data.datasets.listed import layout_of, refuse_missing
from ltcore.data.datasets.lists import Row, file_name, is_list, read_list_file
from ltcore.errors import DataError


class Table(ImageFolder):
    """The images of one list or table; its labels, and if it has the columns, splits and attributes."""

    has_columns = True
    has_folders = False

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        refuse_legacy(cfg)
        Dataset.__init__(self, cfg, lists=lists)
        where = place(cfg.uri)
        data = read_list_file(where)
        rows = listed_rows(data, where, cfg)
        self.root, self.layout = listed_images(rows, where, folder_of(where), needs_train=needs_train)
        self.name = file_name(where).partition(".")[0]
        self.identity = identity(cfg, hashlib.sha256(data).hexdigest(), self.root.fingerprint)

    @staticmethod
    def recognizes(uri: str) -> bool:
        return is_list(uri)


def place(uri: str) -> str:
    """Returns the absolute path of a local place, and a URI as it is."""
    return str(storage.local_path(uri).absolute()) if storage.is_local(uri) else uri.rstrip("/")


def folder_of(uri: str) -> str:
    """Returns the folder that a file lies in; of an address in the web, without the query."""
    whole = uri.partition("?")[0] if storage.is_web(uri) else uri
    return whole.rpartition("/")[0] or "/"


def identity(cfg: DataConfig, *words: str) -> str:
    """Returns the identity of data that are read by columns."""
    return json.dumps([*words, *(getattr(cfg, key) for key in COLUMN_KEYS)])


def listed_images(
    rows: Sequence[Row], where: str, folder: str, *, order: Sequence[str] = (), needs_train: bool = True
) -> tuple[FarFiles, Layout]:
    """Returns the files that the rows list, and their layout; relative paths are relative to ``folder``."""
    if not storage.is_local(where) and (own := next((row for row in rows if _is_local(row.path)), None)):
        raise DataError(f"{own.place}: {own.path} is a path of one machine. Give paths relative to {folder}, or URIs.")
    rows = [replace(row, path=normal_path(row.path, folder)) for row in rows]
    uris = {row.path: place_of(row.path, folder) for row in rows}
    infos = look_up(dict.fromkeys(uris.values()))
    refuse_missing(rows, lambda path: uris[path] in infos, folder)
    layout = layout_of(rows, where, order=order, needs_train=needs_train)
    return FarFiles(where, uris, {path: infos[uri] for path, uri in uris.items()}), layout


def _is_local(path: str) -> bool:
    return path.startswith(("/", "file://"))
