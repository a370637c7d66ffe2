"""The images of a pool as columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ltcore.data.datasets.columns import Columns, GrowingTexts, Positions, Texts
from ltcore.data.datasets.folder_layout import Entries
from ltcore.data.datasets.image_folder import Item
from ltcore.data.shards.source import EXTENSIONS

_EXTS = ("", *EXTENSIONS)
_CODES = {ext: code for code, ext in enumerate(_EXTS)}


@dataclass(frozen=True, eq=False)
class Items(Columns[Item]):
    """Images with their keys and classes."""

    paths: Texts
    keys: Texts
    ext_codes_N: NDArray[np.int8]
    labels_N: NDArray[np.int32]
    attributes_N: NDArray[np.int32]

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """Reads the images one by one."""
        paths, keys, codes, labels, attributes = GrowingTexts(), GrowingTexts(), array("b"), array("i"), array("i")
        for item in items:
            paths.append(item.path)
            keys.append(item.key)
            codes.append(_CODES[item.ext])
            labels.append(item.label)
            attributes.append(item.attribute)
        numbers = np.frombuffer(labels, np.int32), np.frombuffer(attributes, np.int32)
        return cls(paths.whole(), keys.whole(), np.frombuffer(codes, np.int8), *numbers)

    @classmethod
    def keyed(cls, entries: Entries, keys: Iterable[tuple[str, str]]) -> Items:
        """Returns the images of a listing, whose keys and types come one by one."""
        growing, codes = GrowingTexts(), array("b")
        for key, ext in keys:
            growing.append(key)
            codes.append(_CODES[ext])
        numbers = entries.labels_N, entries.attributes_N
        return cls(entries.paths, growing.whole(), np.frombuffer(codes, np.int8), *numbers)

    def __len__(self) -> int:
        return len(self.labels_N)

    def at(self, position: int) -> Item:
        return Item(
            path=self.paths.at(position),
            key=self.keys.at(position),
            ext=_EXTS[self.ext_codes_N[position]],
            label=int(self.labels_N[position]),
            attribute=int(self.attributes_N[position]),
        )

    def take(self, positions_n: Positions) -> Items:
        return Items(
            self.paths.take(positions_n),
            self.keys.take(positions_n),
            self.ext_codes_N[positions_n],
            self.labels_N[positions_n],
            self.attributes_N[positions_n],
        )

    def by_key(self) -> Items:
        """Returns the images in the order of their keys."""
        return self.take(self.keys.order())

    def with_attributes(self, attributes_N: Positions) -> Items:
        """Returns the images with other attributes."""
        return replace(self, attributes_N=attributes_N.astype(np.int32))
