"""Which loader a rank gets: from the cache where the data fit it, else from threads."""

from __future__ import annotations

from typing import Any

import torch

from ltcore import storage
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import reader_crops
from ltcore.data.config import ON, DataConfig
from ltcore.data.loading.cache_entry import NoRoomError
from ltcore.data.loading.canvas_cache import canvas_bytes, entry_path
from ltcore.data.loading.loader import CachedLoader, Loader, OnProgress, ThreadedLoader
from ltcore.data.loading.resident import HOST, ResidentLoader, is_resident
from ltcore.data.prep import prep_of
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.text import byte_size


def make_loader(
    cfg: DataConfig,
    uri: str,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    progress: OnProgress | None = None,
    augment: AugmentConfig | None = None,
    num_views: int = 1,
    paired: bool = False,
    epochs: int = 1,
    device: torch.device = HOST,
) -> Loader:
    """Makes the loader of one rank over the shards at ``uri``.

    Args:
        batch_size: of all ranks together.
        seed: key of the epoch order, and of the crops.
        progress: called with (rows done, rows) while this process fills the canvas cache.
        augment: what will be done to the batches; where it crops large images, the reader does so. None: whole canvases.
        num_views: how many views of each image the loss looks at.
        paired: whether each image of the natural stream comes with one of a stream in which rare classes come most.
        epochs: the length of training, over which crops may grow.
        device: where the batches go, and canvases stay if ``data.resident`` says so.

    ``loader=auto`` takes the cache if all splits fit ``cache_bytes`` and half of the free disk, else threads; for crops
    of large originals it takes threads, so that the pixels never depend on the room on a disk. ``loader=ray`` gives
    threads here as well: the same reader and the same batches without Ray. Raises CapacityError or ConfigError where
    ``data.resident=on`` cannot be done.
    """
    kind, why = cfg.loader, "asked for"
    if kind == "auto":
        fits, why = cache_fits(cfg, uri, augment, num_views)
        kind = "cache" if fits else "threads"
    elif kind == "ray":
        why = "ray asked for, read by threads where there is no Ray"
    stays, where = False, ""
    if cfg.resident == ON or device.type == "cuda":
        manifest = read_manifest(uri)
        cropped = augment is not None and bool(reader_crops(augment, num_views, prep_of(cfg, manifest).image_size))
        stays, where = is_resident(cfg, manifest, device, cached=kind == "cache", cropped=cropped)
    why += f"; {where}" if where else ""
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "rank": rank, "world": world, "why": why}
    options |= {"augment": augment, "num_views": num_views, "paired": paired, "epochs": epochs}
    if kind == "cache":
        try:
            if stays:
                return ResidentLoader(cfg, uri, device=device, progress=progress, **options)
            return CachedLoader(cfg, uri, progress=progress, **options)
        except NoRoomError as error:  # of other data, or of a process that was faster
            if cfg.loader == "cache" or cfg.resident == ON:
                raise
            options["why"] = f"the cache has no room now: {error}"
    return ThreadedLoader(cfg, uri, **options)


def cache_fits(cfg: DataConfig, uri: str, augment: AugmentConfig | None, num_views: int) -> tuple[bool, str]:
    """Tells whether ``loader=auto`` takes this node's cache for the data set, and returns the arithmetic in words."""
    store = ShardStore(uri)
    prep = prep_of(cfg, store.manifest)
    image_size = prep.image_size
    if augment and reader_crops(augment, num_views, image_size):
        return False, "crops are cut out of the originals; data.loader=cache would cut them out of smaller copies"
    sizes = {name: canvas_bytes(split.num_samples, image_size) for name, split in store.manifest.splits.items()}
    missing = sum(
        size for name, size in sizes.items() if not entry_path(store, name, image_size, prep.framing).is_dir()
    )
    free, total = storage.free_bytes(storage.cache_root()) // 2, sum(sizes.values())
    if total > cfg.cache_bytes:
        return False, f"{byte_size(total)} decoded exceed data.cache_bytes of {byte_size(cfg.cache_bytes)}"
    if missing > free:
        return False, f"{byte_size(missing)} decoded exceed half of the free disk, {byte_size(free)}"
    return True, f"{byte_size(total)} decoded fit data.cache_bytes of {byte_size(cfg.cache_bytes)}"
