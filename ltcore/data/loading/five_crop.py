"""Evaluation batches of five crops of each image, as views of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ltcore.batch import Batch
from ltcore.data.images.decode import Pixels
from ltcore.data.images.five_crop import decode_five
from ltcore.data.loading.loader import ThreadedLoader
from ltcore.data.loading.sampler import Rows
from ltcore.data.loading.samples import BadSamples, decode_each


class FiveCropLoader(ThreadedLoader):
    """Reads and decodes with threads; every batch has the five crops of its images as views, uint8 [5, B, 3, S, S]."""

    def _decoded(self, split: str, rows: Iterable[Rows], bad: BadSamples | None) -> Iterator[Batch]:
        def decode(data: bytes, where: str) -> Pixels:
            return decode_five(data, self.image_size, where, self.prep.framing)

        def load(step: Rows) -> Batch:
            crops = decode_each(self.store, split, step.index_B, decode, bad)
            return self._batch(split, step, np.stack(list(crops), 1))

        return self._ahead(load, rows)
