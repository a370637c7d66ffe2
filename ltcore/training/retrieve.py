"""Retrieval by pseudo-attributes: the nearest training images, the patches of prototypes, the classes that share parts.

The description of an image is the histogram of the prototypes nearest to its local features, less that of the mean class, at
unit length, as LPA's ``positives='sample'`` describes an anchor (with the run's own scores and centering); similarity is the
cosine. A class is described in the same way by all its images.

The training split is read once, or once more before where prototypes have to be made. What is kept are the best few of each
query and prototype and the counts [C, K] of the classes, so that memory does not grow with the number of images.

Source: Local Pseudo-Attributes for Long-Tailed Recognition (2022), figure 3.
Shapes: Q queries, K prototypes, C classes, S rows kept, P locations. Cost: 2PKD + 2QK per image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ltcore.batch import Batch
from ltcore.data.datasets.inputs import Item
from ltcore.data.loading.loader import MAX_THREADS
from ltcore.data.loading.prefetch import prefetch
from ltcore.data.loading.samples import BadSamples, decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError
from ltcore.evaluation.protocols import ordered_splits
from ltcore.evaluation.retrieval import Ints, Neighbor, Patch, Prototype, Query, Retrieval, spread_queries
from ltcore.framing import Framing
from ltcore.objective.terms.lpa.attributes import describe, mean_class
from ltcore.training.class_parts import ClassParts, class_parts
from ltcore.training.describer import Describer
from ltcore.training.predict import classes_by_name

QUERIES_PER_GROUP = 3
PATCHES = 8
"""Of each prototype."""
_BATCH = 128
_AHEAD = 4
_CLASSES = 3
"""Named with each prototype."""

Advance = Callable[[int], None]
"""Is told how many more images are done."""

Progress = Callable[[str, int], Advance]
"""Is told what comes and of how many images."""


def silent(_what: str, _total: int) -> Advance:
    """Shows no progress."""
    return lambda _count: None


class Best:
    """The rows with the largest values of each group, out of any number of batches; the first ones of equals."""

    def __init__(self, groups: int, slots: int) -> None:
        self.values_GS = torch.zeros(groups, 0, dtype=torch.float64)
        self.rows_GSn = torch.zeros(groups, 0, 0, dtype=torch.int64)
        self._slots = slots

    def add(self, values_GB: Tensor, rows_GBn: Tensor) -> None:
        """Takes in a batch of values, each with n whole numbers that say what it is of."""
        if not self.rows_GSn.shape[2]:
            self.rows_GSn = rows_GBn[:, :0]
        values = torch.cat([self.values_GS, values_GB.double().cpu()], 1)
        order_GS = values.argsort(dim=1, descending=True, stable=True)[:, : self._slots]
        self.values_GS = values.gather(1, order_GS)
        self.rows_GSn = torch.cat([self.rows_GSn, rows_GBn.cpu()], 1).take_along_dim(order_GS[:, :, None], 1)


@dataclass(frozen=True)
class Searched:
    """The images that are searched."""

    store: ShardStore
    split: str
    to_network_K: Tensor
    """int64, the network's class for each of the data's."""
    image_size: int
    framing: Framing
    bad: BadSamples

    @property
    def num_images(self) -> int:
        """Returns N."""
        return self.store.manifest.split(self.split).num_samples

    def batches(self) -> Iterator[Batch]:
        """Yields all images in index order, uint8 [1, B, 3, S, S], with the network's labels."""
        spans = (np.arange(first, min(first + _BATCH, self.num_images)) for first in range(0, self.num_images, _BATCH))
        labels_N = self.to_network_K[torch.from_numpy(self.store.labels(self.split).copy())]

        def load(index_B: Ints) -> Batch:
            canvases = decode_rows(self.store, self.split, index_B, self.image_size, self.bad, self.framing)
            index = torch.from_numpy(index_B)
            return Batch(torch.from_numpy(canvases)[None], labels_N[index], index, torch.zeros_like(index))

        yield from prefetch(load, spans, ahead=_AHEAD, threads=min(MAX_THREADS, max(2, torch.get_num_threads())))


def retrieve(
    describer: Describer,
    data_uri: str,
    images: Sequence[Item] = (),
    *,
    neighbors: int = 8,
    prototypes: int = 16,
    advance: Progress = silent,
) -> Retrieval:
    """Searches the training split for what is similar to the queries, and for what prototypes and classes have in common.

    ``images`` are the queries; without any, three images of each shot group are taken from the first test split, or else from
    validation. ``advance(what, total)`` is called before each pass, and its result with the number of images at a time. Raises
    ConfigError for a split that is missing, DataError for what cannot be read.
    """
    predictor = describer.predictor
    store = ShardStore(data_uri, predictor.config.data.cache_bytes)
    split = predictor.config.data.train_split
    if split not in store.manifest.splits or not store.manifest.split(split).num_samples:
        raise ConfigError(
            f"{data_uri} has no images in the training split {split!r}: there are {', '.join(store.manifest.splits)}. Give data "
            "with that split."
        )
    to_network_K = classes_by_name(predictor, store.manifest.classes, data_uri)
    bad = BadSamples(predictor.config.data.max_bad_samples)
    searched = Searched(store, split, to_network_K, predictor.image_size, predictor.framing, bad)
    queries, query_split = _queries(describer, searched, images)
    if not describer.memory.num_clusters:
        describer.cluster(_counted(searched, advance("making prototypes", searched.num_images)))
    found = _search(describer, searched, queries, neighbors, advance("searching", searched.num_images))
    memory = describer.memory
    parts = class_parts(found.mass_CK, found.images_C, memory.spec, predictor.shot_groups)
    return Retrieval(
        run=predictor.config.name,
        data=data_uri,
        data_name=store.manifest.name,
        split=split,
        query_split=query_split,
        classes=predictor.classes,
        shot_groups=predictor.shot_groups,
        num_images=searched.num_images,
        num_prototypes=memory.num_clusters,
        origin=describer.origin,
        centering=memory.spec.centering,
        cosines=memory.spec.metric == "cosine",
        image_size=predictor.image_size,
        framing=predictor.framing,
        queries=tuple(_with_neighbors(queries, found)),
        prototypes=tuple(_prototypes(found, parts, prototypes)),
        num_shown=min(prototypes, memory.num_clusters),
        pairs=parts.pairs,
        borrowed=parts.borrowed,
    )


def _counted(searched: Searched, advance: Advance) -> Iterator[Batch]:
    for batch in searched.batches():
        yield batch
        advance(len(batch))


def _queries(describer: Describer, searched: Searched, images: Sequence[Item]) -> tuple[list[Query], str]:
    """Returns the queries without neighbors, and the split that they are from, '' where they were given."""
    predictor, store = describer.predictor, searched.store
    if images:
        known = {name: c for c, name in enumerate(predictor.classes)}
        queries = [
            Query(item.file, predictor.decode(item.read(), item.file), known.get(item.label or ""), ())
            for item in images
        ]
        return queries, ""
    manifest = store.manifest
    tests = ordered_splits(split for split in manifest.splits if split.startswith("test"))
    split = next((s for s in [*tests, "val"] if s in manifest.splits and manifest.split(s).num_samples), None)
    if split is None:
        raise ConfigError(f"{store.uri} has neither a test split nor val with images. Give images as queries.")
    labels_N = searched.to_network_K.numpy()[store.labels(split)]
    chosen = spread_queries(labels_N, predictor.shot_groups, QUERIES_PER_GROUP, split)
    canvases = decode_rows(store, split, np.array(chosen, np.int64), predictor.image_size, None, predictor.framing)
    keys = store.keys(split)
    return [
        Query(keys[index], canvas, int(labels_N[index]), ()) for index, canvas in zip(chosen, canvases, strict=True)
    ], split


@dataclass(frozen=True)
class _Found:
    nearest: Best
    """Of each query; rows (index, label)."""
    patches: Best
    """Of each prototype; rows (index, label, location)."""
    boxes_P4: Tensor
    described_Q: Tensor
    """bool, whether a query differs from the mean class."""
    mass_CK: Tensor
    images_C: Tensor


@torch.no_grad()
def _search(
    describer: Describer, searched: Searched, queries: Sequence[Query], neighbors: int, advance: Advance
) -> _Found:
    memory, num_classes = describer.memory, len(describer.predictor.classes)
    used = memory.num_clusters
    mean_K = mean_class(memory.mass_CK[:, :used])

    def described(scores_BK: Tensor) -> Tensor:
        ones_B = torch.ones(len(scores_BK), device=scores_BK.device)
        return describe(scores_BK, ones_B, mean_K, shrink=memory.spec.shrink, centering=memory.spec.centering)

    canvases_Q3SS = torch.from_numpy(np.stack([query.canvas_3SS for query in queries]))
    outs = [describer.outputs(some) for some in canvases_Q3SS.split(_BATCH)]
    vectors_QK = torch.cat([described(memory.scores(out)) for out in outs])
    nearest, patches = Best(len(queries), neighbors), Best(used, PATCHES)
    mass_CK = torch.zeros(num_classes, used, dtype=torch.int64)
    images_C = torch.zeros(num_classes, dtype=torch.int64)
    for batch in searched.batches():
        scores_BK, activation_BPK = memory.located(describer.outputs(batch.images_VBCHW[0]))
        row_B2 = torch.stack([batch.index_B, batch.labels_B], 1)
        nearest.add(vectors_QK @ described(scores_BK).T, row_B2.expand(len(queries), -1, -1))
        peak_BK, place_BK = activation_BPK.max(1)
        row_KB2 = row_B2.expand(used, -1, -1)
        patches.add(peak_BK.T, torch.cat([row_KB2, place_BK.T.cpu()[:, :, None]], 2))
        mass_CK.index_add_(0, batch.labels_B, scores_BK.cpu())
        images_C += torch.bincount(batch.labels_B, minlength=num_classes)
        advance(len(batch))
    return _Found(nearest, patches, describer.boxes(outs[0]), vectors_QK.any(1).cpu(), mass_CK, images_C)


def _with_neighbors(queries: Sequence[Query], found: _Found) -> Iterator[Query]:
    for number, query in enumerate(queries):
        if not found.described_Q[number]:
            yield query
            continue
        rows = zip(found.nearest.rows_GSn[number].tolist(), found.nearest.values_GS[number].tolist(), strict=True)
        yield replace(query, neighbors=tuple(Neighbor(index, label, value) for (index, label), value in rows))


def _prototypes(found: _Found, parts: ClassParts, most: int) -> Iterator[Prototype]:
    """Yields the prototypes that similar classes share most, then those that are most frequent, and all that are named."""
    share_K, named = mean_class(found.mass_CK), parts.weights()
    share_CK = found.mass_CK / found.mass_CK.sum(1, keepdim=True).double().clamp_min(1)
    order_K = sorted(range(len(share_K)), key=lambda k: (-named.get(k, 0.0), -float(share_K[k]), k))
    for number in order_K[: max(most, len(named))]:
        top_C = share_CK[:, number].argsort(descending=True, stable=True)[:_CLASSES].tolist()
        classes = tuple((c, float(share_CK[c, number])) for c in top_C if share_CK[c, number] > 0)
        rows = zip(found.patches.rows_GSn[number].tolist(), found.patches.values_GS[number].tolist(), strict=True)
        patches = tuple(
            Patch(index, label, value, tuple(found.boxes_P4[place].tolist())) for (index, label, place), value in rows
        )
        yield Prototype(number, float(share_K[number]), classes, patches)
