"""Evaluation of one split: every row exactly once over all ranks, counted, in integers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.data.loading.loader import Loader
from ltcore.errors import DataError
from ltcore.evaluation.attributes import AttributeRanks, CellCounts, attribute_metrics
from ltcore.evaluation.bootstrap import Interval, bootstrap_intervals
from ltcore.evaluation.calibration import ReliabilityBin
from ltcore.evaluation.confused import ConfusedPair, confused_pairs
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.confusion_file import ConfusionCells
from ltcore.evaluation.metrics import metrics, per_attribute, per_class, reliability_bins, support
from ltcore.evaluation.pairs import AttributeCounts, Ints, Pairs
from ltcore.evaluation.plugged import Metric, Scores
from ltcore.hashing import hash64
from ltcore.models.net import LongTailNet
from ltcore.models.views import over_views
from ltcore.training.preflight import refuse_empty_classes


@dataclass(frozen=True)
class Tested:
    """What one split came to, in a size that does not grow with the square of the classes."""

    metrics: dict[str, float | None]
    per_class: list[float | None]
    """[C] recalls."""
    support: list[int]
    """[C] samples."""
    calibration: list[ReliabilityBin]
    confusion: ConfusionCells
    confused: list[ConfusedPair]
    intervals: dict[str, Interval]
    """95% intervals of metrics; {} unless they were asked for, and where several images show the same picture."""


@dataclass(kw_only=True)
class Evaluator:
    """Evaluates a network on the splits of a loader, every row exactly once over all ranks."""

    net: LongTailNet
    loader: Loader
    device: torch.device
    batch_size: int
    normalize: Callable[[Batch], Batch]
    """Turns raw batches into the network's input."""
    autocast: torch.dtype | None = None
    adjust: Callable[[Tensor], Tensor] = lambda logits_BC: logits_BC
    """Changes logits [B, C] before the largest is taken."""
    num_classes: int = 0
    """Classes of the network where the data have others; 0: those of the data."""
    to_network_K: Ints | None = None
    """The network's class for each of the data's, where they have others; None: they are the same."""
    shot_groups: Sequence[str] = ()
    """[C] groups by the data that the network was trained on; (): by the loader's."""
    ranks: AttributeRanks | None = None
    """By the data that the network was trained on; None: by the loader's."""
    beat: Callable[[], None] = lambda: None
    """Called at every batch: a large split takes minutes."""
    plugged: Mapping[str, Metric] = field(default_factory=dict)
    """Metrics of plugins by name, beside ours."""

    def outputs(self, split: str) -> Iterator[tuple[Batch, ModelOutput]]:
        """Yields each batch of the rank's share of a split, and the network's output for it.

        The network is in evaluation mode. Where the loader gives several views, logits are the mean over them.
        """
        was_training = self.net.training
        self.net.eval()
        for raw in self.loader.eval_batches(split, self.batch_size):
            self.beat()
            batch = self.normalize(raw.to(self.device))
            if self.to_network_K is not None:
                batch = replace(batch, labels_B=torch.tensor(self.to_network_K, device=self.device)[batch.labels_B])
            with torch.no_grad(), self._precision():
                out = over_views(self.net, batch.images_VBCHW)
            yield batch, out
        self.net.train(was_training)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else contextlib.nullcontext()

    def counter(self, split: str) -> Confusion:
        """Returns what counts predictions of a split, and scores for metrics of plugins, with nothing counted yet."""
        store = self.loader.store
        labels_N = store.labels(split) if self.to_network_K is None else self.to_network_K[store.labels(split)]
        num_classes = self.num_classes or len(store.manifest.classes)
        pairs = Pairs.of(labels_N, store.attributes(split), num_classes, len(store.manifest.attributes))
        counts = Confusion(pairs, self.device)
        if self.plugged:
            counts.scores = Scores(self.plugged, num_classes, self.device)
        return counts

    def counts(
        self, split: str, cells_N: Tensor | None = None, classify: Callable[[ModelOutput], Tensor] | None = None
    ) -> Confusion:
        """Counts the predictions of a whole split, equal on every rank.

        The prediction is the largest logit (the mean over experts), or that of the logits [B, C] that ``classify`` makes of
        the output. ``cells_N``, int64 zeros for the samples of the split, is filled with label * C + prediction. Raises
        DataError if a row is lost or doubled.
        """
        manifest = self.loader.store.manifest
        counts = self.counter(split)
        if classify is not None:
            counts.scores = None  # metrics of plugins are those of the classifier
        attributes_N = torch.tensor(self.loader.store.attributes(split), device=self.device)  # the store's is read-only
        for batch, out in self.outputs(split):
            logits_BC = self.adjust(out.mean_logits_BC) if classify is None else classify(out)
            counts.update(logits_BC, batch.labels_B, attributes_N[batch.index_B])
            if cells_N is not None:
                cells_N[batch.index_B] = batch.labels_B * logits_BC.shape[1] + logits_BC.argmax(-1)
        counts.reduce()
        if cells_N is not None:
            dist.all_reduce_sum_(cells_N)  # each sample is seen by one rank alone
        expected = manifest.splits[split].num_samples
        if counts.total != expected:
            raise DataError(f"Evaluation of split {split!r} saw {counts.total} rows; the manifest has {expected}.")
        return counts

    def metrics(self, counts: Confusion) -> dict[str, float | None]:
        """Returns the flat metrics of one split: those of ``catalog.METRICS``, of plugins, and ``attribute/<name>``.

        Where the data have no attributes, those that need them are left out, and where they have more than
        ``MAX_NAMED_ATTRIBUTES``, those of single ones.
        """
        manifest = self.loader.store.manifest
        shot_groups = self.shot_groups or manifest.shot_groups
        flat = metrics(counts, shot_groups)
        if manifest.attributes:
            flat |= attribute_metrics(CellCounts.of(counts, self._ranks.of(counts.pairs)), shot_groups)
            flat |= per_attribute(counts, manifest.attributes)
        if counts.scores is not None:
            values = counts.scores.values(counts, shot_groups)
            flat |= dist.broadcast_object(values)  # ranks decide by it, and other machines may round differently
        return flat

    @cached_property
    def _ranks(self) -> AttributeRanks:
        return self.ranks or AttributeRanks(self.attribute_counts)

    def _intervals(self, counts: Confusion, split: str) -> dict[str, Interval]:
        manifest = self.loader.store.manifest
        if manifest.repeats(split) > 1:  # resampling takes images for independent
            return {}
        ranks_P = self._ranks.of(counts.pairs) if manifest.attributes else None
        seed = hash64("bootstrap", manifest.hash, split)
        return bootstrap_intervals(counts, ranks_P, self.shot_groups or manifest.shot_groups, seed)

    @cached_property
    def attribute_counts(self) -> AttributeCounts:
        """Counts the loader's training images of each class and attribute; none where the data have no attributes.

        They are those of the split ``train``, as for shot groups: protocols that train on another split of the same data
        then compare the same samples.
        """
        store = self.loader.store
        sizes = (len(store.manifest.classes), len(store.manifest.attributes))
        if not sizes[1] or "train" not in store.manifest.splits:
            return AttributeCounts.of_table(np.zeros(sizes, np.int64))
        return AttributeCounts.of(store.labels("train"), store.attributes("train"), *sizes)

    def tested(self, split: str, *, examples: bool = False, intervals: bool = False) -> Tested:
        """Evaluates a split with the current weights; the counts, which may be large, are given up.

        With ``examples``, it also says which samples were confused; with ``intervals``, how far the metrics may be off.
        """
        size = self.loader.store.manifest.splits[split].num_samples
        cells_N = torch.zeros(size, dtype=torch.int64, device=self.device) if examples else None
        counts = self.counts(split, cells_N)
        confusion = ConfusionCells.of(counts)
        return Tested(
            metrics=self.metrics(counts),
            per_class=per_class(counts),
            support=support(counts),
            calibration=reliability_bins(counts),
            confusion=confusion,
            confused=[] if cells_N is None else confused_pairs(confusion, cells_N.cpu().numpy(), split),
            intervals=self._intervals(counts, split) if intervals else {},
        )

    def test(self) -> dict[str, Tested]:
        """Evaluates every test split, with the current weights."""
        splits = [split for split in self.loader.store.manifest.splits if split.startswith("test")]
        return {split: self.tested(split, examples=True) for split in splits}


def check_train_split(loader: Loader, split: str) -> None:
    """Raises DataError where a class has no training sample, as ``refuse_empty_classes``."""
    manifest = loader.store.manifest
    refuse_empty_classes(manifest.class_counts[split], manifest.classes, split)
