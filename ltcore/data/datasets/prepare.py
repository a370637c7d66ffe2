"""From what a user names (``data.uri``) to shards: made once, and found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ltcore import storage
from ltcore.data.config import COLUMN_KEYS, PLACE_KEYS, DataConfig
from ltcore.data.datasets.broken import BrokenImagesError
from ltcore.data.datasets.dataset import Dataset, Lists
from ltcore.data.datasets.lists import read_list_file
from ltcore.data.datasets.registry import find, names, recognize
from ltcore.data.datasets.shardwise import divided, write_divided
from ltcore.data.datasets.workspace import Bar, Engine, OnProgress, alone
from ltcore.data.shards.exchange import put_back
from ltcore.data.shards.manifest import MANIFEST, VERSION, Manifest, read_manifest
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.remarks import BROKEN, CLASSES_FROM, remarks
from ltcore.data.shards.source import Rows, Sample, Source
from ltcore.data.shards.writer import write_dataset, write_indexed
from ltcore.errors import ConfigError, DataError, nearest
from ltcore.text import counted, few_words

CONSTRUCTION = 5
"""Raised when the same source would give other samples than before, so that older copies are made anew."""
PROGRESS_S = 1.0
MOST_NAMED = 20


def prepare(
    cfg: DataConfig,
    *,
    fresh: bool = False,
    progress: OnProgress | None = None,
    root: str | None = None,
    needs_train: bool = True,
    engine: Engine = alone,
) -> str:
    """Returns the URI of the shards for ``cfg.uri``.

    That is ``cfg.uri`` itself if it has a manifest, otherwise a copy that is made once. Several processes of one node
    may call this at the same time; one makes the copy, the others wait for it.

    Args:
        cfg: of it ``uri``, the keys that choose images, classes and splits, and ``max_bad_samples`` matter here.
        fresh: make the copy again; no effect on finished shards.
        progress: called with a line of text about once a second while something is made.
        root: URI of the folder for copies; None is the node's cache folder. Workers on other nodes need a shared one.
        needs_train: refuse a folder without training images, which can only be evaluated on.
        engine: writes the shards of images that can be read in any order; what was interrupted is continued by it. It may
            refuse others, which this process writes.

    Raises DataError or ConfigError with one sentence when there is nothing that could be used.
    """
    if find(cfg.uri).by_path and is_shards(cfg.uri):
        _refuse_columns(cfg)
        _refuse_label_key(cfg)
        _refuse_places(cfg, ())
        return cfg.uri
    dataset = open_dataset(cfg, needs_train=needs_train)
    place = f"{dataset.name}-{_digest(cfg, dataset)[:12]}"
    cache = storage.cache_folder("datasets")
    uri = storage.join(root or str(cache), place)
    with storage.locked_in_cache(cache / f"{place}.lock"):
        if fresh or not is_shards(uri):
            _fill(dataset, uri, progress, engine)
        else:
            _check_broken(cfg, uri)
    return uri


def selection_remarks(cfg: DataConfig, manifest: Manifest) -> list[str]:
    """Returns :func:`remarks` about the data of ``cfg``, and where its ``imbalance_factor`` has no effect.

    Raises ConfigError where it or ``classes_from`` has no effect because the shards were finished with another one.
    """
    if cfg.classes_from not in (None, classes_from := manifest.provenance.get(CLASSES_FROM)):
        raise ConfigError(
            f"data.classes_from={cfg.classes_from} has no effect on {cfg.uri}, finished shards made with {classes_from}. Leave "
            "it away, or make others with make_shards.py --classes-from."
        )
    made, factor = manifest.provenance.get("imbalance_factor"), cfg.imbalance_factor
    found, build = remarks(manifest), find(cfg.uri)
    if factor in (None, made) or (build.has_selection and not build.by_path):
        return found
    if not build.has_selection:
        return [
            f"{cfg.uri} has an imbalance of its own, {made}: data.imbalance_factor={factor:g} has no effect.",
            *found,
        ]
    raise ConfigError(
        f"data.imbalance_factor={factor:g} has no effect on {cfg.uri}, finished shards whose factor is {made}. Leave it out, "
        "or make others with make_shards.py --imbalance-factor."
    )


def is_shards(uri: str) -> bool:
    """Tells whether there are finished shards."""
    return not storage.is_web(uri) and (storage.exists(storage.join(uri, MANIFEST)) or put_back(uri))


def make(
    cfg: DataConfig,
    uri: str,
    *,
    lists: Lists = (),
    shard_size: int = 1000,
    reencode: Reencode | None = None,
    progress: OnProgress | None = None,
    engine: Engine = alone,
    bar: Bar | None = None,
) -> Manifest:
    """Makes the shards for ``cfg.uri`` at ``uri``, replacing an earlier data set there, or continues to make them.

    Args:
        cfg: as for :func:`prepare`; its ``uri`` must not be finished shards.
        lists: (split, list file of ``path label`` lines, or table), paths relative to the folder or zip ``cfg.uri``.
        shard_size: most images in one tar.
        reencode: how images are encoded anew; None: the files go into the shards as they are.
        progress: called with a line of text about once a second.
        engine: as for :func:`prepare`.
        bar: shows how many of them are written; None: ``progress`` is told.
    """
    dataset = open_dataset(cfg, lists)
    listed = [(split, hashlib.sha256(read_list_file(file)).hexdigest()) for split, file in lists]
    how: dict[str, Any] = {"shard_size": shard_size, "reencode": reencode, "engine": engine, "bar": bar}
    return _write(dataset, uri, **how, listed=listed, progress=progress)


def open_dataset(cfg: DataConfig, lists: Lists = (), needs_train: bool = True) -> Dataset:
    """Finds the source of ``cfg.uri``. Raises DataError or ConfigError where there is none, or it does not fit ``cfg``."""
    build = recognize(cfg.uri)
    if build.by_path and not build.by_pattern:
        _check_place(cfg.uri)
    if not build.has_columns and not lists:
        _refuse_columns(cfg)
    if not build.has_label_key:
        _refuse_label_key(cfg)
    _refuse_places(cfg, build.places)
    return build(cfg, lists=lists, needs_train=needs_train)


def _refuse_columns(cfg: DataConfig) -> None:
    """Raises ConfigError where columns are named of what has none."""
    if given := [key for key in COLUMN_KEYS if getattr(cfg, key) is not None]:
        raise ConfigError(
            f"data.{given[0]}={getattr(cfg, given[0])} has no effect: {cfg.uri} is no table. Leave it "
            "out, or give a csv, tsv or parquet file."
        )


def _refuse_label_key(cfg: DataConfig) -> None:
    """Raises ConfigError where a key of labels is named for data that are no tars of others."""
    if cfg.label_key is not None:
        raise ConfigError(
            f"data.label_key={cfg.label_key} has no effect: {cfg.uri} is no set of WebDataset tars of others. Leave it out."
        )


def _refuse_places(cfg: DataConfig, read: tuple[str, ...]) -> None:
    """Raises ConfigError where files are named for a benchmark of what is none."""
    if given := [key for key in PLACE_KEYS if getattr(cfg, key) is not None and key not in read]:
        raise ConfigError(
            f"data.{given[0]}={getattr(cfg, given[0])} has no effect on {cfg.uri}: it is for "
            f"{', '.join(name for name in names() if given[0] in find(name).places)}. Leave it out."
        )


def _check_place(uri: str) -> None:
    accepted = (
        f"Accepted: shards with a {MANIFEST}, WebDataset tars, a directory or zip of images, a list, csv, tsv or parquet file "
        f"of images, {', '.join(names())}."
    )
    if not storage.exists(uri):
        raise DataError(f"data.uri={uri!r}: there is nothing.{nearest(uri, names())} {accepted}")


def _check_broken(cfg: DataConfig, uri: str) -> None:
    """Raises DataError where a copy was made without more broken images than are allowed now."""
    broken = read_manifest(uri).provenance.get(BROKEN, {})
    if len(broken) > cfg.max_bad_samples:
        raise DataError(
            f"{cfg.uri}: {counted(len(broken), 'image')} cannot be used ({few_words(list(broken), MOST_NAMED)}), expected at "
            f"most data.max_bad_samples={cfg.max_bad_samples}. Remove or replace them, or give "
            f"data.max_bad_samples={len(broken)}."
        )


def _digest(cfg: DataConfig, dataset: Dataset) -> str:
    """Hashes everything that determines the samples."""
    words: list[Any] = [VERSION, CONSTRUCTION, dataset.identity, cfg.subset_seed, cfg.val_per_class]
    if cfg.imbalance_factor is not None and dataset.has_selection:
        words += [cfg.imbalance_factor, cfg.chosen_subset]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _fill(dataset: Dataset, uri: str, progress: OnProgress | None, engine: Engine) -> None:
    """Puts at ``uri`` what a run reads: indexes of tars that are there already, else shards."""
    indexed = dataset.index(progress)
    if indexed is not None:
        write_indexed(uri, indexed, seed=dataset.cfg.subset_seed, progress=progress)
        if progress:
            progress(f"indexed {dataset.name}, once; the index is kept in {uri}, the tars stay where they are")
        return
    if progress:
        progress(f"making {dataset.name}, once; it is kept in {uri}")
    _write(dataset, uri, shard_size=1000, progress=progress, engine=engine)


def _write(
    dataset: Dataset,
    uri: str,
    *,
    shard_size: int,
    reencode: Reencode | None = None,
    listed: Lists = (),
    progress: OnProgress | None,
    engine: Engine,
    bar: Bar | None = None,
) -> Manifest:
    """Writes shards; ``listed`` are (split, hash) of the files that list the images."""
    if progress:
        progress(f"{dataset.name}: choosing images")
    how: dict[str, Any] = {"shard_size": shard_size, "reencode": reencode, "progress": progress}
    source = dataset.source()
    if divided(source) is not None:
        identity = [_digest(dataset.cfg, dataset), *listed]
        bar = bar or partial(_lines, progress or _quiet)
        return write_divided(dataset, source, uri, identity, **how, engine=engine, bar=bar)
    with engine(None):
        try:
            return write_source(source, uri, seed=dataset.cfg.subset_seed, **how)
        except BrokenImagesError as error:
            if len(error.found) > dataset.cfg.max_bad_samples:
                raise
            dataset.broken = error.found
        if progress:
            progress(f"{dataset.name}: writing again without {counted(len(dataset.broken), 'broken image')}")
        return write_source(dataset.source(), uri, seed=dataset.cfg.subset_seed, **how)


def write_source(
    source: Source,
    uri: str,
    *,
    seed: int,
    shard_size: int = 1000,
    reencode: Reencode | None = None,
    progress: OnProgress | None = None,
) -> Manifest:
    """Writes a data set at ``uri``, replacing an earlier one there; the other arguments are those of :func:`make`."""
    if progress:
        told = {split: _Reported(rows, f"{source.name}/{split}", progress) for split, rows in source.splits.items()}
        source = replace(source, splits=told)
    return write_dataset(uri, source, seed=seed, shard_size=shard_size, reencode=reencode, progress=progress)


def _quiet(_text: str) -> None:
    """Tells nobody."""


@contextlib.contextmanager
def _lines(progress: OnProgress, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tells about once a second and at the end how many images are done; what it yields is told how many more are."""
    done, told = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        if time.monotonic() - told > PROGRESS_S or done == total:
            progress(f"{doing}: {done:,} of {total:,} images")
            told = time.monotonic()

    yield advance


@dataclass(frozen=True)
class _Reported:
    """Rows that tell how many are read, about once a second and at the end."""

    rows: Rows
    what: str
    progress: OnProgress

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        told = time.monotonic()
        for count, row in enumerate(self.rows, 1):
            yield row
            if time.monotonic() - told > PROGRESS_S or count == len(self):
                self.progress(f"{self.what}: {count:,} of {len(self):,} images")
                told = time.monotonic()
