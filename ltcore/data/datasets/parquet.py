"""Images in parquet, as on the Hugging Face Hub: encoded in a column, or as paths, with classes as names or numbers."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.datasets.columns import Texts
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.image_folder import ImageFolder, refuse_legacy
from ltcore.data.datasets.image_root import bad_image, check_size, digest
from ltcore.data.datasets.listed import layout_of
from ltcore.data.datasets.lists import SPLIT_WORDS, Row, checked_row, file_name, find_columns, split_of
from ltcore.data.datasets.tables import folder_of, identity, listed_images, place
from ltcore.data.datasets.tar_places import has_class_folders, names_tars
from ltcore.errors import DataError, LtcoreError
from ltcore.fsspec_stores import FileInfo
from ltcore.limits import (
    HELD_BYTES,
    MAX_COLUMN_CHUNKS,
    MAX_FILES,
    MAX_FOOTER_BYTES,
    MAX_RATIO,
    MAX_ROWS,
    PACKED_BYTES,
    at_most,
    load_json,
)

ENDING = ".parquet"
HUB_FOLDERS = ("data", "train")
BATCH_ROWS = 16
"""Images that are unpacked from their pages at once, where all of their row group may be held; else it is one."""
BUFFER_BYTES = 2**20
_TAIL_BYTES = 8
"""The end of a parquet file: the length of its footer, and ``PAR1``."""
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


class Parquet(ImageFolder):
    """The images of a parquet file, or of a folder of such files, whose names say the split."""

    has_columns = True
    has_folders = False

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        refuse_legacy(cfg)
        Dataset.__init__(self, cfg, lists=lists)
        where = place(cfg.uri)
        infos = _files(where)
        self.name = file_name(where).removesuffix(ENDING)
        files = [_File(where if info.name == "" else storage.join(where, info.name), info, cfg) for info in infos]
        _refuse_too_many(where, files)
        split_of_file = _splits(where, files)
        rows = [row for file in files for row in file.rows(split_of_file[file])]
        order = list(dict.fromkeys(name for file in files for name in file.classes))
        if files[0].holds_images:
            self.layout = layout_of(rows, where, order=order, needs_train=needs_train)
            self.root = _Images(where, files)
            fingerprint = self.root.fingerprint
        else:
            folder = folder_of(where) if infos[0].name == "" else where
            self.root, self.layout = listed_images(rows, where, folder, order=order, needs_train=needs_train)
            fingerprint = f"{_fingerprint(files)} {self.root.fingerprint}"
        self.identity = identity(cfg, fingerprint)

    @staticmethod
    def recognizes(uri: str) -> bool:
        if file_name(uri).endswith(ENDING):
            return True
        if storage.is_web(uri) or names_tars(uri) or not _is_folder(uri):
            return False
        names = _names(uri)
        parquet = any(name.endswith(ENDING) for name in names) and not any(name.endswith(".tar") for name in names)
        return parquet and not has_class_folders(uri)


def _is_folder(uri: str) -> bool:
    return not storage.is_local(uri) or storage.local_path(uri).is_dir()


def _names(uri: str) -> list[str]:
    """Returns the files of a folder, and those of the folders in it where the Hub keeps parquet."""
    folders = [uri, *(storage.join(uri, name) for name in HUB_FOLDERS)]
    if storage.is_local(uri):  # where names may be no text, of folders of photos
        places = (storage.local_path(folder) for folder in folders)
        inner = (path for place in places if place.is_dir() for path in place.iterdir())
        return [path.name for path in at_most(inner, MAX_FILES, uri, "files") if path.is_file()]
    return [info.name for folder in folders for info in storage.describe_files(folder, recursive=False)]


def _files(where: str) -> list[FileInfo]:
    """Returns the parquet files of a place in order; the only one has no name where the place is itself a file."""
    if found := storage.describe_file(where):
        return [FileInfo("", found.size, found.version)]
    files = [info for info in storage.describe_files(where) if info.name.endswith(ENDING)]
    if not files:
        raise DataError(f"{where} holds no parquet file. Check the path.")
    if storage.is_local(where):
        _refuse_twice(storage.local_path(where), files)
    folders = sorted({str(PurePosixPath(info.name).parent) for info in files})
    if len(folders) > 1 and not all(split_of(PurePosixPath(folder).name) for folder in folders):
        raise DataError(
            f"{where} holds parquet files in {len(folders)} folders ({', '.join(folders[:5])}). Choose one of them as the data."
        )
    return files


def _refuse_twice(folder: Path, files: Sequence[FileInfo]) -> None:
    """Raises DataError for a file that is reached twice, through a link to it or its folder: its rows would count twice."""
    seen = dict[tuple[int, int], str]()
    for info in files:
        found = (folder / info.name).stat()
        first = seen.setdefault((found.st_dev, found.st_ino), info.name)
        if first != info.name:
            raise DataError(f"{folder}: {first} and {info.name} are the same file, through a link. Remove one of them.")


class _File:
    """One parquet file, of which the footer is read."""

    def __init__(self, uri: str, info: FileInfo, cfg: DataConfig) -> None:
        self.uri, self.info = uri, info
        self.stem = (info.name or file_name(uri)).removesuffix(ENDING)
        with self.opened() as file:
            schema, self.num_rows = file.schema_arrow, file.metadata.num_rows
            self._refuse_bomb(file.metadata)
            self.groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            if min(self.groups, default=0) < 0 or sum(self.groups) != self.num_rows:
                raise DataError(
                    f"{uri} is no readable parquet (its row groups have {self.groups[:5]} rows). Download it again."
                )
            self.footer = "" if info.version else digest([str(file.metadata.to_dict())])
        self._schema = schema
        self.columns = find_columns(schema.names, uri, cfg)
        self.holds_images = _holds_images(schema.field(self.columns["image"]), uri)
        self.classes = _class_names(schema.metadata, self.columns["label"])

    @contextlib.contextmanager
    def opened(self, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
        """Opens the file for reading by pages; ``dictionaries`` are columns whose texts stay as they are stored, once."""
        try:
            with storage.open_file(self.uri, seekable=True) as stream:
                _refuse_long_footer(self.uri, stream)
                yield pq.ParquetFile(
                    stream,
                    read_dictionary=list(dictionaries),
                    buffer_size=BUFFER_BYTES,
                    pre_buffer=False,
                    page_checksum_verification=True,  # where pages have checksums
                )
        except LtcoreError:
            raise
        except (OSError, UnicodeDecodeError, pa.ArrowException, storage.errors_of(self.uri)) as error:
            raise DataError(f"{self.uri} is no readable parquet ({error}). Copy or download it again.") from error

    def _refuse_bomb(self, footer: pq.FileMetaData) -> None:
        """Raises DataError for a footer that claims more than the bytes of the file can hold: some bytes can claim billions."""
        chunks, size = footer.num_row_groups * footer.num_columns, self.info.size
        if chunks > MAX_COLUMN_CHUNKS or not 0 <= footer.num_rows <= (size if size >= 0 else MAX_ROWS):
            raise DataError(
                f"{self.uri} has {size} bytes and claims {footer.num_rows} rows in {footer.num_row_groups} groups of "
                f"{footer.num_columns} columns; expected at most a row for each byte and {MAX_COLUMN_CHUNKS} columns of groups. "
                "Copy or download it again."
            )
        for group in map(footer.row_group, range(footer.num_row_groups)):
            for column in map(group.column, range(footer.num_columns)):
                packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
                if packed < 0 or unpacked > max(PACKED_BYTES, MAX_RATIO * packed):
                    raise DataError(
                        f"{self.uri}: {column.path_in_schema} has {unpacked} bytes in a row group, packed into {packed}; "
                        f"expected at most {MAX_RATIO} times as many. Write the file again without compression if it is right."
                    )

    def path(self, row: int) -> str:
        """Returns the name that an image of a row goes by; the names have the order of the rows."""
        return f"{self.stem}/{row:07d}"

    def rows(self, split: str) -> Iterator[Row]:
        """Reads all but the images; ``split`` is what the file's name says."""
        roles = ["label", *(role for role in ("split", "attribute") if self.columns[role])]
        roles += [] if self.holds_images else ["image"]
        names = [self.columns[role] for role in roles]
        texts = [name for name in names if _is_text(self._schema.field(name).type)]
        with self.opened(texts) as file:
            number = 0
            for batch in file.iter_batches(columns=names, use_threads=False):
                cells = {role: self._texts(role, batch.column(self.columns[role])) for role in roles}
                for at in range(batch.num_rows):
                    found = {role: column[at] for role, column in cells.items()}
                    yield self._row(number, split, found)
                    number += 1

    def _row(self, number: int, split: str, found: Mapping[str, str]) -> Row:
        path = self.path(number) if self.holds_images else found["image"]
        cells = (path, found["label"], found.get("split", split), found.get("attribute", ""))
        return checked_row(f"{self.uri}, row", number, cells, has_split="split" in found)

    def _texts(self, role: str, column: pa.Array) -> list[str]:
        kind = column.type
        if pa.types.is_dictionary(kind):
            known = ["" if value is None else str(value) for value in column.dictionary.to_pylist()]
            at_n = column.indices.to_pylist()
            if any(at is not None and not 0 <= at < len(known) for at in at_n):
                raise DataError(
                    f"{self.uri}: the column {self.columns[role]!r} is damaged. Make or fetch the file again."
                )
            return ["" if at is None else known[at] for at in at_n]
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)):
            raise DataError(
                f"{self.uri}: the column {self.columns[role]!r} for the {role} holds {kind}, expected names or whole numbers. "
                f"Choose another: data.{role}_column=NAME."
            )
        values = column.to_pylist()
        if role == "label" and self.classes and pa.types.is_integer(kind):
            return ["" if value is None or value < 0 else self._class(value) for value in values]
        return ["" if value is None else str(value) for value in values]

    def _class(self, label: int) -> str:
        if label >= len(self.classes):
            raise DataError(
                f"{self.uri} has a label {label}, but names only {len(self.classes)} classes. Correct the names."
            )
        return self.classes[label]


def _refuse_long_footer(uri: str, stream: pa.NativeFile) -> None:
    """Raises DataError for a footer longer than any: three bytes of it can become an object of six hundred."""
    tail = bytes(stream.read_at(_TAIL_BYTES, max(0, stream.size() - _TAIL_BYTES)))
    if (count := int.from_bytes(tail[:4], "little")) > MAX_FOOTER_BYTES and tail[4:] == b"PAR1":
        raise DataError(
            f"{uri} has a footer of {count} bytes, expected at most {MAX_FOOTER_BYTES}. Write the file again with larger row "
            "groups, or as several files."
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _holds_images(field: pa.Field, uri: str) -> bool:
    """Tells whether a column holds encoded images, and not their paths. Raises DataError where it holds neither."""
    kind = field.type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if not _is_text(kind):
        raise DataError(
            f"{uri}: the column {field.name!r} for the image holds {field.type}, expected encoded images, a struct of bytes "
            "and path, or paths. Choose another: data.image_column=NAME."
        )
    return False


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...]:
    """Returns the names that the Hub's metadata give to the numbers of a column; () where they give none."""
    try:
        features = load_json((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _refuse_too_many(where: str, files: Sequence[_File]) -> None:
    if (count := sum(file.num_rows for file in files)) > MAX_ROWS:
        raise DataError(f"{where} has {count:,} rows, expected at most {MAX_ROWS:,}. Make shards of its parts.")
    if len({file.holds_images for file in files}) > 1:
        raise DataError(f"{where}: some files hold images and some hold paths. Keep one kind.")
    parts: dict[tuple[str, str], int] = {}
    for file in files:
        if file.info.name and (found := _PART.fullmatch(file.stem)):
            parts[found[1], found[3]] = parts.get((found[1], found[3]), 0) + 1
    for (stem, total), there in parts.items():
        if there != int(total):
            raise DataError(f"{where}: {there} of {int(total)} files {stem}-*{ENDING} are there. Download the others.")


def _splits(where: str, files: Sequence[_File]) -> dict[_File, str]:
    """Returns the split of each file by a word in its name or folder; '' for all where none has such a word."""
    found = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        found[file] = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")
    silent = [file for file, split in found.items() if not split]
    if len(files) == 1 or len(silent) == len(files):
        return dict.fromkeys(files, next(iter(found.values())) if len(files) == 1 else "")
    if silent:
        raise DataError(
            f"{where}: the name {silent[0].stem}{ENDING} says no split, as others do ({', '.join(SPLIT_WORDS)}). Rename it."
        )
    return found


def _fingerprint(files: Sequence[_File]) -> str:
    return digest(f"{file.stem}\0{file.info.size}\0{file.info.version}\0{file.footer}" for file in files)


class _Images:
    """The images of parquet files, read a few rows at a time; each file is read once where rows come in order."""

    by_content = True
    skipped: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def __init__(self, where: str, files: Sequence[_File]) -> None:
        self.where = where
        self.files = Texts.of(file.path(row) for file in files for row in range(file.num_rows))
        self.fingerprint = _fingerprint(files)
        self._by_stem = {file.stem: file for file in files}
        self._cursor: _Cursor | None = None

    def announce(self, paths: Sequence[str]) -> None:
        """Rows are read in order anyway."""

    def read(self, path: str) -> bytes:
        stem, _, number = path.rpartition("/")
        file, row = self._by_stem[stem], int(number)
        if self._cursor is None or self._cursor.file is not file:
            if self._cursor is not None:
                self._cursor.close()
            self._cursor = _Cursor(file)
        image = self._cursor.read(row)
        if image is None:
            advice = "Store the images themselves, or their paths alone."
            raise bad_image(self.where, path, "has no bytes of an image", advice)
        check_size(self.where, path, len(image))
        return image


class _Cursor:
    """An open file, whose images are read onwards from the start of a row group."""

    def __init__(self, file: _File) -> None:
        self.file, self._stack = file, contextlib.ExitStack()
        self._opened = self._stack.enter_context(file.opened())
        self._starts = list(itertools.accumulate(file.groups, initial=0))
        self._first = self._end = 0
        self._batch: Any = ()

    def read(self, row: int) -> bytes | None:
        if not self._first <= row < self._end:
            self._start(bisect.bisect_right(self._starts, row) - 1)
        try:
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = ()  # before the next is read
                self._batch = next(self._batches).column(0)
        except (OSError, StopIteration, pa.ArrowException) as error:
            raise DataError(f"{self.file.uri} cannot be read ({error}). Copy or download it again.") from error
        value = self._batch[row - self._first].as_py()
        found = value.get("bytes") if isinstance(value, dict) else value
        return None if found is None else bytes(found)

    def _start(self, group: int) -> None:
        self._first, self._end, self._batch = self._starts[group], self._starts[group + 1], ()
        column = self.file.columns["image"]
        large = self._opened.metadata.row_group(group).total_byte_size > HELD_BYTES
        rows = 1 if large else BATCH_ROWS
        self._batches = self._opened.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False)

    def close(self) -> None:
        self._stack.close()
