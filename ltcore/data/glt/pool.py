"""All images that a benchmark may be built from: where they are, of which class, and, where it is given, which attribute.

Images of every source are read in any order by several processes: those of folders, zips, lists and stores where they are,
all others (parquet, archives of published data) out of shards that are made of them once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from ltcore.data.config import DataConfig
from ltcore.data.datasets.dataset import Lists
from ltcore.data.datasets.folder_layout import Entries, Layout
from ltcore.data.datasets.image_folder import Item, keys_of
from ltcore.data.datasets.image_root import AtHand, Divisible
from ltcore.data.datasets.longtail import IntArray
from ltcore.data.datasets.prepare import is_shards, open_dataset, prepare
from ltcore.data.datasets.registry import find
from ltcore.data.datasets.workspace import OnProgress
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.given import attributes_by_level, read_attributes
from ltcore.data.glt.items import Items
from ltcore.data.shards.manifest import SKIPPED
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.remarks import CARVED
from ltcore.data.shards.source import safe_key
from ltcore.errors import ConfigError, DataError, nearest
from ltcore.owned_folder import TemporaryFolder


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Images in the order of their keys, so that the order of a listing has no effect."""

    name: str
    root: Divisible
    items: Items
    """Their keys ascend; an attribute of -1 is unknown."""
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    """Those that the images bring or a file gives; () where there are none."""
    identity: str
    """Changes with the images, their classes and attributes."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    copy: TemporaryFolder | None = field(default=None, repr=False, compare=False)
    """Where the images are that were fetched for it."""

    @property
    def keys(self) -> Sequence[str]:
        """Returns the N keys."""
        return self.items.keys

    @property
    def labels(self) -> IntArray:
        """Returns [N] class ids."""
        return self.items.labels_N.astype(np.int64)

    @property
    def attribute_ids(self) -> IntArray:
        """Returns [N] attribute ids, -1 where unknown."""
        return self.items.attributes_N.astype(np.int64)

    def counts(self, positions_n: IntArray | None = None) -> IntArray:
        """Returns [C, A] images of each class and attribute, at some positions or at all; each image has to have one."""
        chosen = slice(None) if positions_n is None else positions_n
        counts_CA = np.zeros((len(self.classes), len(self.attributes)), np.int64)
        np.add.at(counts_CA, (self.items.labels_N[chosen], self.items.attributes_N[chosen]), 1)
        return counts_CA

    def without(self, paths: Iterable[str]) -> Pool:
        """Returns the pool less the images of these paths."""
        gone = set(paths)
        if not gone:
            return self
        kept_n = [position for position, path in enumerate(self.items.paths) if path not in gone]
        return replace(self, items=self.items.take(np.array(kept_n, np.int64)))


def open_pool(
    cfg: DataConfig, choices: GltChoices, *, lists: Lists = (), progress: OnProgress | None = None
) -> tuple[Pool, dict[str, int]]:
    """Opens the images of a source; returns them, and how many images each of its splits has that are not used.

    Args:
        cfg: of it ``uri`` and the keys that choose classes and columns matter.
        choices: of them ``pool`` and where attributes come from.
        lists: (split, list file) pairs that say which images of a folder or zip are used.
        progress: told what is made of images that cannot be read where they are.

    Raises DataError or ConfigError in one sentence where there are no such images, splits, classes or attributes.
    """
    found = _opened(cfg, choices, lists, progress)
    pa.default_memory_pool().release_unused()  # listing takes several times what stays
    return found


def _opened(
    cfg: DataConfig, choices: GltChoices, lists: Lists, progress: OnProgress | None
) -> tuple[Pool, dict[str, int]]:
    if choices.attribute_level is not None:
        if cfg.classes_from is not None:
            raise ConfigError(
                "--attributes-from names the level of the attribute; without --classes-from, the others are the class."
            )
        cfg = replace(cfg, classes_from="path")
    if find(cfg.uri).by_path and is_shards(cfg.uri):
        return _of_shards(cfg.uri, cfg, choices, cfg.uri)
    dataset = open_dataset(cfg, lists)
    found = dataset.files()
    if found is None:
        uri = prepare(replace(cfg, val_per_class=0), progress=progress)
        return _of_shards(uri, cfg, choices, dataset.name)
    root, layout = found
    splits = _chosen(list(layout.splits), choices.pool, carved=())
    unused = {split: len(rows) for split, rows in layout.splits.items() if split not in splits}
    if choices.attribute_level is not None:
        layout = attributes_by_level(layout, choices.attribute_level, root.where)
    entries = Entries.joined([layout.splits[split] for split in splits])
    items = Items.keyed(entries, keys_of(root, layout, entries.paths))
    provenance = {"source": f"images of {dataset.name}", "pool": list(splits), **layout.provenance}
    if layout.skipped:
        provenance[SKIPPED] = layout.skipped
    pool = _pool(dataset.name, root, items, layout, f"{dataset.identity} {splits}", provenance)
    return _with_file(replace(pool, copy=dataset.copy), choices, layout.outer), unused


def _pool(name: str, root: Divisible, items: Items, layout: Layout, identity: str, provenance: dict[str, Any]) -> Pool:
    ordered = items.by_key()
    return Pool(
        name=name,
        root=root.part(ordered.paths),  # which does not hold what was listed beside the images
        items=ordered,
        classes=layout.classes,
        attributes=layout.attributes,
        identity=identity,
        provenance=provenance,
    )


def _chosen(there: Sequence[str], wanted: Sequence[str], carved: Sequence[str]) -> tuple[str, ...]:
    """Returns the splits whose images are used."""
    for split in wanted:
        if split not in there:
            raise ConfigError(
                f"--pool {split}: there is no such split.{nearest(split, there)} There are {', '.join(there)}."
            )
    if wanted:
        return tuple(dict.fromkeys(wanted))
    brings_a_test = any(split.startswith("test") and split not in carved for split in there)
    return ("train",) if brings_a_test and "train" in there else tuple(there)


def _with_file(pool: Pool, choices: GltChoices, outer: str = "") -> Pool:
    """Returns the pool with the attributes of a file, where one is given."""
    if choices.attributes_file is None:
        return pool
    names, by_path, digest = read_attributes(choices.attributes_file)
    number = {name: n for n, name in enumerate(names)}

    def attribute(item: Item) -> int:
        words = (item.path, item.path.removeprefix(outer), item.key)
        return number[next((by_path[word] for word in words if word in by_path), "")] if by_path.keys() & words else -1

    attributes_N = np.fromiter(map(attribute, pool.items), np.int32, len(pool.items))
    if (attributes_N < 0).all():
        raise DataError(
            f"{choices.attributes_file}: none of its {len(by_path):,} paths is an image; the first is {next(iter(by_path))}, "
            f"and an image is {pool.items[0].path}. Write them as the latter."
        )
    items = pool.items.with_attributes(attributes_N)
    return replace(pool, items=items, attributes=names, identity=f"{pool.identity} {digest}")


def _of_shards(uri: str, cfg: DataConfig, choices: GltChoices, name: str) -> tuple[Pool, dict[str, int]]:
    if choices.attribute_level is not None:
        raise ConfigError(f"--attributes-from names a level of folders, and {cfg.uri} has none. Leave it out.")
    stored = StoredImages(uri)
    store = stored.store()
    manifest = store.manifest
    splits = _chosen(list(manifest.splits), choices.pool, manifest.provenance.get(CARVED, ()))
    unused = {split: found.num_samples for split, found in manifest.splits.items() if split not in splits}

    def items() -> Iterator[Item]:
        for split in splits:
            tags = zip(store.keys(split), store.labels(split).tolist(), store.attributes(split).tolist(), strict=True)
            for index, (key, label, attribute) in enumerate(tags):
                whole = key if len(splits) == 1 else safe_key(f"{split}/{key}")
                yield Item(f"{split}/{index}", whole, "", label, attribute)

    layout = Layout(manifest.classes, {}, attributes=manifest.attributes)
    provenance = {"source": f"{manifest.name}, {manifest.hash[:12]}", "pool": list(splits)}
    pool = _pool(manifest.name or name, stored, Items.of(items()), layout, f"{manifest.hash} {splits}", provenance)
    return _with_file(pool, choices), unused


@dataclass(frozen=True)
class StoredImages(AtHand):
    """The images of shards; a path is ``split/index``."""

    where: str

    def store(self) -> ShardStore:
        """Returns the open shards, one for each process."""
        return _store(self.where)

    def read(self, path: str) -> bytes:
        """Reads one image. Raises DataError where its shard is damaged."""
        split, _, index = path.rpartition("/")
        return self.store().read_rows(split, np.array([int(index)]))[0]

    def part(self, paths: Iterable[str]) -> StoredImages:
        """Returns itself, which is as small."""
        return self


@lru_cache(maxsize=1)
def _store(uri: str) -> ShardStore:
    return ShardStore(uri)
