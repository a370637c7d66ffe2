"""From what a user names (``data.uri``) to shards: made once, and found again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore import storage
from ltcore.data.config import BENCHMARKS, DataConfig
from ltcore.data.datasets.source import Rows, Source
from ltcore.data.shards.manifest import MANIFEST, VERSION, Manifest
from ltcore.data.shards.remarks import remarks
from ltcore.data.shards.writer import Sample, write_dataset
from ltcore.errors import ConfigError, DataError, nearest

CONSTRUCTION = 2
"""Raised when the same source would give other samples than before, so that older copies are made anew."""
PROGRESS_S = 1.0

OnProgress = Callable[[str], None]


def prepare(
    cfg: DataConfig,
    *,
    fresh: bool = False,
    progress: OnProgress | None = None,
    root: str | None = None,
    needs_train: bool = True,
) -> str:
    """URI of the shards for ``cfg.uri``: itself if it has a manifest, otherwise a copy that is made once.

    Several processes of one node may call this at the same time; one makes the copy, the others wait for it.

    Args:
        cfg: of it ``uri``, ``imbalance_factor``, ``subset``, ``subset_seed`` and ``val_per_class`` matter here.
        fresh: make the copy again; no effect on finished shards.
        progress: called with a line of text about once a second while something is made.
        root: URI of the folder for copies; None is the node's cache folder. Workers on other nodes need a shared one.
        needs_train: refuse a folder without training images, which can only be evaluated on.

    Raises DataError or ConfigError with one sentence when there is nothing that could be used.
    """
    if cfg.uri not in BENCHMARKS and is_shards(cfg.uri):
        return cfg.uri
    origin = _find(cfg, (), needs_train)
    place = f"{origin.name}-{origin.digest[:12]}"
    cache = storage.cache_root() / "datasets"
    uri = storage.join(root or str(cache), place)
    try:
        with storage.locked(cache / f"{place}.lock"):
            if fresh or not is_shards(uri):
                if progress:
                    progress(f"making {origin.name}, once; it is kept in {uri}")
                _write(origin, cfg, uri, shard_size=1000, progress=progress)
    except OSError as error:
        raise DataError(
            f"{cache} cannot be written: {error}. Correct its permissions, free space, or set LTCORE_CACHE to another "
            "place."
        ) from error
    return uri


def selection_remarks(cfg: DataConfig, manifest: Manifest) -> list[str]:
    """:func:`remarks` about the data that ``cfg`` leads to, and where its ``imbalance_factor`` has no effect on them.

    ConfigError where it has none on finished shards, which somebody made with another one.
    """
    made, factor = manifest.provenance.get("imbalance_factor"), cfg.imbalance_factor
    found = remarks(manifest)
    if factor in (None, made) or cfg.uri in BENCHMARKS[1:]:
        return found
    if cfg.uri == "digits-glt":
        return [
            f"{cfg.uri} has an imbalance of its own, {made}: data.imbalance_factor={factor:g} has no effect.",
            *found,
        ]
    raise ConfigError(
        f"data.imbalance_factor={factor:g} has no effect on {cfg.uri}, finished shards whose factor is {made}. Leave it away, "
        "or make others with make_shards.py --imbalance-factor."
    )


def is_shards(uri: str) -> bool:
    """Whether there are finished shards."""
    return storage.exists(storage.join(uri, MANIFEST))


def make(
    cfg: DataConfig,
    uri: str,
    *,
    lists: Sequence[tuple[str, str]] = (),
    shard_size: int = 1000,
    progress: OnProgress | None = None,
) -> Manifest:
    """Makes the shards for ``cfg.uri`` at ``uri``, replacing an earlier data set there.

    Args:
        cfg: as for :func:`prepare`; its ``uri`` must not be finished shards.
        lists: (split, list file of ``path label`` lines), the paths relative to the directory or zip ``cfg.uri``.
        shard_size: most images in one tar.
        progress: called with a line of text about once a second.
    """
    return _write(_find(cfg, lists), cfg, uri, shard_size=shard_size, progress=progress)


@dataclass(frozen=True)
class _DatasetSpec:
    """Something that shards can be made from."""

    name: str
    digest: str
    """Hexadecimal hash of everything that determines the samples."""
    build: Callable[[], Source]


def _find(cfg: DataConfig, lists: Sequence[tuple[str, str]], needs_train: bool = True) -> _DatasetSpec:
    if cfg.uri in BENCHMARKS:
        if lists:
            raise ConfigError(f"list files name images below a directory or in a zip; {cfg.uri} is neither.")
        return _DatasetSpec(cfg.uri, _digest(cfg, cfg.uri), lambda: _named(cfg))
    from ltcore.data.datasets.folder_layout import read_folders, read_lists
    from ltcore.data.datasets.image_folder import image_folder
    from ltcore.data.datasets.image_root import open_root

    accepted = f"Accepted: shards with a {MANIFEST}, a local directory or zip of images, {', '.join(BENCHMARKS)}."
    if not storage.exists(cfg.uri):
        raise DataError(f"data.uri={cfg.uri!r}: there is nothing.{nearest(cfg.uri, BENCHMARKS)} {accepted}")
    if not storage.is_local(cfg.uri):
        raise DataError(f"data.uri={cfg.uri!r} has no {MANIFEST}. {accepted}")
    if cfg.imbalance_factor is not None and cfg.subset == "legacy":
        raise ConfigError(
            "data.subset='legacy' needs the original order of the images, which only data.uri=cifar10 and cifar100 "
            "keep; use data.subset='keyed', which has the same class counts."
        )
    path = storage.local_path(cfg.uri).absolute()
    root = open_root(str(path))
    layout = read_lists(root, lists) if lists else read_folders(root, needs_train=needs_train)
    return _DatasetSpec(path.stem, _digest(cfg, root.fingerprint), lambda: image_folder(root, layout, cfg))


def _named(cfg: DataConfig) -> Source:
    if cfg.uri == "digits-glt":
        from ltcore.data.datasets.digits_glt import digits_glt

        return digits_glt(seed=cfg.subset_seed, val_per_class=cfg.val_per_class)
    from ltcore.data.datasets.cifar import cifar

    return cifar(cfg.uri, cfg)


def _digest(cfg: DataConfig, identity: str) -> str:
    words: list[Any] = [VERSION, CONSTRUCTION, identity, cfg.subset_seed, cfg.val_per_class]
    if cfg.imbalance_factor is not None and cfg.uri != "digits-glt":
        words += [cfg.imbalance_factor, cfg.subset]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _write(
    origin: _DatasetSpec, cfg: DataConfig, uri: str, *, shard_size: int, progress: OnProgress | None
) -> Manifest:
    if progress:
        progress(f"{origin.name}: choosing images")
    return write_source(origin.build(), uri, seed=cfg.subset_seed, shard_size=shard_size, progress=progress)


def write_source(
    source: Source, uri: str, *, seed: int, shard_size: int = 1000, progress: OnProgress | None = None
) -> Manifest:
    """Writes a data set at ``uri``, replacing an earlier one there; the other arguments are those of :func:`make`."""
    splits = {
        split: _reported(rows, f"{source.name}/{split}", progress) if progress else rows
        for split, rows in source.splits.items()
    }
    return write_dataset(
        uri,
        name=source.name,
        classes=source.classes,
        attributes=source.attributes,
        splits=splits,
        image_size=source.image_size,
        mean=source.mean,
        std=source.std,
        seed=seed,
        shot_rule=source.shot_rule,
        provenance=source.provenance,
        shard_size=shard_size,
        progress=progress,
    )


def _reported(rows: Rows, what: str, progress: OnProgress) -> Iterator[Sample]:
    """The rows, with a line of progress about once a second and one at the end."""
    told = time.monotonic()
    for count, row in enumerate(rows, 1):
        yield row
        if time.monotonic() - told > PROGRESS_S or count == len(rows):
            progress(f"{what}: {count:,} of {len(rows):,} images")
            told = time.monotonic()
