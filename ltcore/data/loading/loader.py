"""Batches for the training loop, from the canvas cache or from threads that read and decode; bitwise the same."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import reader_crops
from ltcore.data.config import DataConfig
from ltcore.data.loading.cache_entry import NoRoomError
from ltcore.data.loading.canvas_cache import CanvasCache, open_canvases
from ltcore.data.loading.crops import CropDraws, Cropped, decode_crops
from ltcore.data.loading.original_cache import ImageCache, open_images
from ltcore.data.loading.pairs import Sampler, epoch_sampler
from ltcore.data.loading.prefetch import prefetch
from ltcore.data.loading.sampler import Copies, Rows, check_batches, check_lanes, eval_rows
from ltcore.data.loading.samples import BadSamples, decode_rows
from ltcore.data.prep import prep_of
from ltcore.data.shards.reader import ShardStore

Ints = npt.NDArray[np.int64]
OnProgress = Callable[[int, int], None]
MAX_THREADS = 16
_LOG = logging.getLogger("ltcore.data")


class Loader(ABC):
    """Delivers the batches of a training loop; one per rank. Subclasses say where images come from."""

    kind = ""
    """cache, threads or ray."""

    def __init__(
        self,
        cfg: DataConfig,
        uri: str,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        why: str = "asked for",
        augment: AugmentConfig | None = None,
        num_views: int = 1,
        paired: bool = False,
        epochs: int = 1,
        trains: bool = True,
    ) -> None:
        """Opens the shards at ``uri``.

        ``epochs`` is the length of training, over which crops may grow (``AugmentConfig.crop_schedule``).
        ``paired`` yields pairs of rows (``PairedSampler``), ``batch_size`` of them. ``trains=False`` is for evaluation only, also
        of data without a training split.
        """
        self.cfg, self.uri, self.batch_size, self.seed, self.rank, self.world = cfg, uri, batch_size, seed, rank, world
        self.epochs = epochs
        self.store = ShardStore(uri, cfg.cache_bytes)
        self.prep = prep_of(cfg, self.store.manifest)
        """How images are brought to canvases, and what they are normalized with."""
        self.image_size = self.prep.image_size
        self.crops = reader_crops(augment, num_views, self.image_size) if augment else ()
        self.paired = paired
        self.why = why
        """Why a loader of this kind, for people."""
        self.copies_N: Copies | None = None
        """How often each training sample comes in the epochs that start from now on; None is once each. May be set."""
        self.order_L: Ints | None = None
        """The rows of the epochs that start from now on, in order and with repetitions, where the order itself matters; None:
        that of ``EpochSampler``. May be set, in place of ``copies_N``."""
        if trains:
            check_lanes(cfg.lanes, batch_size, world)  # now rather than at the first step
            check_batches(self.store.manifest.split(cfg.train_split).num_samples, batch_size)

    @property
    def num_batches(self) -> int:
        """Returns the steps per epoch, the same on every rank."""
        if self.order_L is not None:
            return len(self.order_L) // self.batch_size
        num_rows = (
            self.store.manifest.split(self.cfg.train_split).num_samples
            if self.copies_N is None
            else int(self.copies_N.sum())
        )
        return num_rows // self.batch_size

    @property
    def rows_per_step(self) -> int:
        """Returns the images of a step on all ranks together, two for each pair."""
        return self.batch_size * (2 if self.paired else 1)

    @property
    @abstractmethod
    def bad_samples(self) -> dict[int, str]:
        """Returns index -> what is wrong, of undecodable training samples replaced so far in this process."""

    def sampler(self, epoch: int) -> Sampler:
        """Returns the sampler of one epoch for the present ``copies_N`` or ``order_L``."""
        return epoch_sampler(
            self.store,
            self.cfg.train_split,
            paired=self.paired,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            world=self.world,
            lanes=self.cfg.lanes,
            copies_N=self.copies_N,
            order_L=self.order_L,
        )

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the rank's share of the epoch's batches from ``start_step`` on.

        They are uint8 images [V, B / W, 3, S, S], twice as many where they are paired, on the CPU or, where they are resident,
        on the device; the rest of a batch is on the CPU. V is 1, or the number of views
        where the reader cuts them out of large originals (``AugmentConfig.crop_from``).
        """
        rows = self.sampler(epoch).rank_batches(self.rank, start_step)
        if self.crops:
            return self._cropped_batches(rows, epoch)
        return self._batches(self.cfg.train_split, rows)

    def eval_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yields the rank's share of the split in index order, at most ``batch_size`` rows each.

        No row is dropped or doubled, so ranks may differ in the number of batches.
        """
        num_rows = self.store.manifest.split(split).num_samples
        slices = eval_rows(num_rows, self.rank, self.world, batch_size)
        return self._batches(split, (Rows(index, np.zeros_like(index)) for index in slices))

    @abstractmethod
    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        """Yields batches of whole images."""

    @abstractmethod
    def close(self) -> None:
        """Releases files and locks."""

    def _cropped_batches(self, rows: Iterable[Rows], epoch: int) -> Iterator[Batch]:
        """Yields training batches of what ``crops`` cuts out, computed by threads ahead of the loop."""

        def load(step: Rows) -> Batch:
            cropped = self._crop(step.index_B, CropDraws(self.crops, self.seed, epoch, step, epochs=self.epochs))
            return self._batch(self.cfg.train_split, step, cropped.canvases_VB3SS, cropped.boxes_VB4)

        return self._ahead(load, rows)

    @abstractmethod
    def _crop(self, index_B: Ints, draws: CropDraws) -> Cropped:
        """Cuts the crops of some training samples out of their originals."""

    def _decoded(self, split: str, rows: Iterable[Rows], bad: BadSamples | None) -> Iterator[Batch]:
        """Yields batches that threads decode ahead of the loop."""

        def load(step: Rows) -> Batch:
            return self._batch(split, step, self._decode(split, step, bad)[None])

        return self._ahead(load, rows)

    def _decode(self, split: str, step: Rows, bad: BadSamples | None) -> npt.NDArray[np.uint8]:
        return decode_rows(self.store, split, step.index_B, self.image_size, bad, self.prep.framing)

    def _ahead(self, load: Callable[[Rows], Batch], rows: Iterable[Rows]) -> Iterator[Batch]:
        threads = min(MAX_THREADS, max(2, torch.get_num_threads()))  # the CPUs that the run gave to this process
        return prefetch(load, rows, ahead=self.cfg.prefetch_steps, threads=threads)

    def _batch(
        self, split: str, rows: Rows, canvases_VB3SS: npt.NDArray[np.uint8] | Tensor, boxes_VB4: Ints | None = None
    ) -> Batch:
        return Batch(
            images_VBCHW=torch.as_tensor(canvases_VB3SS),
            labels_B=torch.from_numpy(self.store.labels_of(split, rows.index_B)),
            index_B=torch.from_numpy(rows.index_B),
            copy_B=torch.from_numpy(rows.copy_B),
            boxes_VB4=None if boxes_VB4 is None else torch.from_numpy(boxes_VB4),
        )


class CachedLoader(Loader):
    """Gathers batches from the node's canvas cache, crops of large images from its whole images.

    A split is decoded when it is first used; the training split at once. Where there is no room for another one, threads
    decode it each time.
    """

    kind = "cache"

    def __init__(self, cfg: DataConfig, uri: str, *, progress: OnProgress | None = None, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self._progress = progress
        self._open: dict[str, CanvasCache] = {}
        self._whole: ImageCache | None = None
        if self.crops:
            limits = self._limits(cfg.train_split)
            self._whole = open_images(
                self.store,
                cfg.train_split,
                cfg.cache_px or self.image_size,
                framing=self.prep.framing,
                **limits,
            )
        else:
            self._canvases(cfg.train_split)

    @property
    def bad_samples(self) -> dict[int, str]:
        return dict((self._whole or self._canvases(self.cfg.train_split)).bad)

    def close(self) -> None:
        for opened in self._open.values():
            opened.close()
        self._open.clear()
        if self._whole is not None:
            self._whole.close()

    def _limits(self, split: str) -> dict[str, Any]:
        return {
            "cache_bytes": self.cfg.cache_bytes,
            "max_bad_samples": self.cfg.max_bad_samples if split == self.cfg.train_split else 0,
            "progress": self._progress,
        }

    def _canvases(self, split: str) -> CanvasCache:
        if split not in self._open:
            framing = self.prep.framing
            self._open[split] = open_canvases(
                self.store, split, self.image_size, framing=framing, **self._limits(split)
            )
        return self._open[split]

    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        try:
            canvases = self._canvases(split)
        except NoRoomError as error:
            # the training split is evaluated too, and kept in another form where training reads crops of it
            bad = BadSamples(self.cfg.max_bad_samples) if split == self.cfg.train_split else None
            _LOG.warning("split %s is decoded by threads: %s", split, error)
            yield from self._decoded(split, rows, bad)
            return
        for step in rows:
            yield self._batch(split, step, canvases.take(step.index_B)[None])

    def _crop(self, index_B: Ints, draws: CropDraws) -> Cropped:
        assert self._whole is not None, "opened where there is something to crop"
        return self._whole.crops(index_B, self.image_size, draws)


class ThreadedLoader(Loader):
    """Reads and decodes with threads of this process, at most ``prefetch_steps`` steps ahead of the loop."""

    kind = "threads"

    def __init__(self, cfg: DataConfig, uri: str, **options: Any) -> None:
        super().__init__(cfg, uri, **options)
        self._bad = BadSamples(cfg.max_bad_samples)

    @property
    def bad_samples(self) -> dict[int, str]:
        return dict(self._bad.messages)

    def close(self) -> None:
        """Does nothing: threads belong to an iterator and end with it, and there is nothing else to release."""

    def _batches(self, split: str, rows: Iterable[Rows]) -> Iterator[Batch]:
        return self._decoded(split, rows, self._bad if split == self.cfg.train_split else None)

    def _crop(self, index_B: Ints, draws: CropDraws) -> Cropped:
        return decode_crops(
            self.store,
            self.cfg.train_split,
            index_B,
            self.image_size,
            draws,
            self._bad,
            self.prep.framing,
        )
