"""Canvases that stay in the memory of the device, so that a step brings no images to it (``data.resident``).

The canvases of the training split and of ``val`` are copied to the device once, as uint8. Of a step there cross row, label and
copy numbers, int64 [B / W] each, and what augmentation draws for each sample: numbers are keyed by sample and not by order,
drawn on the host as for all loaders and shipped as float32 [B / W], but for those of mixed images, which are drawn on the
device. The device gathers the rows; all views are made of the one gathered batch, by the code that augments every loader's
batches. So batches are those of the other loaders, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from ltcore.batch import Batch, device_index, to_device
from ltcore.data.config import AUTO, OFF, ON, DataConfig
from ltcore.data.loading.cache_entry import NoRoomError
from ltcore.data.loading.canvas_cache import CanvasCache, canvas_bytes
from ltcore.data.loading.loader import CachedLoader
from ltcore.data.loading.sampler import Rows
from ltcore.data.prep import prep_of
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CapacityError, ConfigError
from ltcore.text import byte_size

SHARE = 4
"""``data.resident=auto`` takes at most one part in so many of the free memory of a GPU; networks and activations need most."""
CHUNK_BYTES = 32 * 2**20
"""What is copied at a time: pinned memory on the way to a GPU is not given back."""
CROPS = (
    "data.resident=on keeps whole canvases on the device, and here crops are cut out of the originals while reading. Set "
    "augment.crop_from=canvas or data.resident=off."
)
NO_CACHE = (
    "data.resident=on copies the decoded images from this node's cache, and data.loader=auto finds no room for them there. Raise "
    "data.cache_bytes, free some disk, or set data.resident=auto."
)
HOST = torch.device("cpu")
_LOG = logging.getLogger("ltcore.data")


def resident_splits(cfg: DataConfig, manifest: Manifest) -> tuple[str, ...]:
    """Returns the splits that are read in every epoch; tests are read once or twice in a run."""
    return tuple(dict.fromkeys(split for split in (cfg.train_split, "val") if split in manifest.splits))


def resident_bytes(cfg: DataConfig, manifest: Manifest) -> int:
    """Returns the memory that resident canvases take on the device of each worker."""
    image_size = prep_of(cfg, manifest).image_size
    splits = resident_splits(cfg, manifest)
    return sum(canvas_bytes(manifest.split(split).num_samples, image_size) for split in splits)


def free_bytes(device: torch.device) -> int:
    """Returns the memory that this process could still take on a device; of the CPU, what the machine has available.

    Of a GPU it includes what this process holds and does not use, as after an earlier run, and where the process may use a part
    of the GPU only, beside others, no more than that.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    may_hold = total * torch.cuda.get_per_process_memory_fraction(device_index(device))
    used = torch.cuda.memory_allocated(device)
    return max(0, int(min(free + torch.cuda.memory_reserved(device), may_hold) - used))


def is_resident(
    cfg: DataConfig, manifest: Manifest, device: torch.device, *, cached: bool, cropped: bool
) -> tuple[bool, str]:
    """Tells whether the canvases of a data set stay on ``device``, and returns the arithmetic in words.

    The words are '' where nothing was counted.

    Args:
        cached: whether batches come from the node's cache.
        cropped: whether the reader cuts crops out of originals, so that there are no canvases.

    Raises CapacityError where ``data.resident=on`` does not fit the cache or the device, ConfigError with such crops.
    """
    if cfg.resident == ON and (cropped or not cached):
        raise ConfigError(CROPS) if cropped else CapacityError(NO_CACHE)
    if cfg.resident == OFF or cropped or not cached or (cfg.resident == AUTO and device.type != "cuda"):
        return False, ""
    need, free = resident_bytes(cfg, manifest), free_bytes(device)
    what = f"canvases of {' and '.join(resident_splits(cfg, manifest))}"
    if cfg.resident == ON:
        if need > free:
            raise no_room(cfg, manifest, device, free)
        return True, f"{what} stay on {device}, {byte_size(need)} of {byte_size(free)} free (data.resident=on)"
    arithmetic = f"{byte_size(need)}, and a quarter of the {byte_size(free)} free there is {byte_size(free // SHARE)}"
    fits = need <= free // SHARE
    return fits, f"{what} {'stay' if fits else 'do not stay'} on {device}: they take {arithmetic}"


def no_room(cfg: DataConfig, manifest: Manifest, device: torch.device, free: int) -> CapacityError:
    """Returns the error of a device that is too small for ``data.resident=on``."""
    return CapacityError(
        f"data.resident=on needs {byte_size(resident_bytes(cfg, manifest))} on {device} for the canvases of "
        f"{' and '.join(resident_splits(cfg, manifest))}, and {byte_size(free)} are free there: set data.resident=auto or off, "
        "or take a device with more memory."
    )


class ResidentLoader(CachedLoader):
    """Gathers batches on the device, from canvases that were copied there once; labels and numbers stay on the host.

    The splits are those of ``resident_splits``; others, and one for which the cache or the device has no room after all, are
    gathered on the host as ``CachedLoader`` does. With ``data.resident=on`` that is an error.
    """

    def __init__(self, cfg: DataConfig, uri: str, *, device: torch.device, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self.device = device
        self._resident: dict[str, Tensor] = {}
        try:
            for split in resident_splits(cfg, self.store.manifest):
                self._hold(split)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases files and locks, and the memory on the device."""
        self._resident.clear()
        super().close()

    def _hold(self, split: str) -> None:
        try:
            self._resident[split] = on_device(self._canvases(split), self.device)
        except NoRoomError:  # of the cache, which says so again when the split is read
            if self.cfg.resident == ON:
                raise
        except torch.OutOfMemoryError as error:  # others took the memory after it was counted
            if self.cfg.resident == ON:
                raise no_room(self.cfg, self.store.manifest, self.device, free_bytes(self.device)) from error
            self.why += f"; but {self.device} had no room for {split} in the end"
            _LOG.warning(
                "split %s is gathered on the host: %s has no room now (data.resident=auto)", split, self.device
            )

    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        held_N3SS = self._resident.get(split)
        if held_N3SS is None:
            yield from super()._batches(split, rows)
            return
        for step in rows:
            index_B = to_device(torch.from_numpy(step.index_B), self.device)
            yield self._batch(split, step, held_N3SS.index_select(0, index_B)[None])


def on_device(canvases: CanvasCache, device: torch.device) -> Tensor:
    """Copies all canvases of a split to a device, uint8 [N, 3, S, S]; damaged rows are decoded anew on the way."""
    shape = canvases.canvases_N3SS.shape
    held_N3SS = torch.empty(shape, dtype=torch.uint8, device=device)
    rows = max(1, CHUNK_BYTES // canvas_bytes(1, shape[-1]))
    for first in range(0, shape[0], rows):
        index_n = np.arange(first, min(first + rows, shape[0]))
        held_N3SS[first : first + rows] = to_device(torch.from_numpy(canvases.take(index_n)), device)
    return held_N3SS
