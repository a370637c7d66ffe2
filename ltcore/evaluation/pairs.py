"""Pairs of a class and an attribute: rows of tables that would be mostly empty as classes by attributes.

Breeds of cats and of dogs are attributes of one class each: where 1,000 classes have three of their own, one in a thousand of
all pairs has images. Tables with a row for each pair that has some are as small as the data.
Shapes: P pairs, A attributes, C classes, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Row = list[int] | dict[str, int]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some pairs, each once, by attribute and then by class; unknown attributes come last."""

    codes_P: Ints
    """attribute * C + class, rising; the unknown attribute has the number A here."""
    num_classes: int
    num_attributes: int

    @classmethod
    def every(cls, num_classes: int, num_attributes: int) -> Pairs:
        """Returns all pairs there can be, also those of unknown attribute."""
        return cls(np.arange((num_attributes + 1) * num_classes), num_classes, num_attributes)

    @classmethod
    def of(cls, labels_N: Ints, attributes_N: Ints, num_classes: int, num_attributes: int) -> Pairs:
        """Returns the pairs that some samples have; an attribute of -1 is unknown."""
        slots_N = np.where(attributes_N < 0, num_attributes, attributes_N)
        return cls(np.unique(slots_N * num_classes + labels_N), num_classes, num_attributes)

    @property
    def known(self) -> Pairs:
        """Returns the first of the pairs, those whose attribute is known."""
        number = np.searchsorted(self.codes_P, self.num_attributes * self.num_classes)
        return Pairs(self.codes_P[:number], self.num_classes, self.num_attributes)

    @cached_property
    def labels_P(self) -> Ints:
        """Returns the class of each pair."""
        labels_P: Ints = self.codes_P % self.num_classes
        return labels_P

    @cached_property
    def attributes_P(self) -> Ints:
        """Returns the attribute of each pair, A where it is unknown."""
        attributes_P: Ints = self.codes_P // self.num_classes
        return attributes_P

    @cached_property
    def families(self) -> tuple[Ints, Ints]:
        """Returns the family of each class [C] and of each attribute [A]; classes that share an attribute are of one."""
        from scipy import sparse  # a dependency of scikit-learn, slow to import
        from scipy.sparse.csgraph import connected_components

        size = self.num_classes + self.num_attributes
        nodes = (self.known.labels_P, self.num_classes + self.known.attributes_P)
        graph = sparse.coo_array((np.ones(len(nodes[0])), nodes), (size, size))
        _, found = connected_components(graph, directed=False)
        return found[: self.num_classes], found[self.num_classes :]

    def by_class(self, values_P: Ints) -> Ints:
        """Sums values of the pairs as [C]."""
        sums_C = np.zeros(self.num_classes, np.int64)
        np.add.at(sums_C, self.labels_P, values_P)
        return sums_C


@dataclass(frozen=True, eq=False)
class AttributeCounts:
    """How many images each class has of each known attribute, as those above 0."""

    pairs: Pairs
    counts_P: Ints

    @classmethod
    def of(cls, labels_N: Ints, attributes_N: Ints, num_classes: int, num_attributes: int) -> AttributeCounts:
        """Counts samples; those of unknown attribute (-1) are left out."""
        known_N = attributes_N >= 0
        codes_P, counts_P = np.unique(attributes_N[known_N] * num_classes + labels_N[known_N], return_counts=True)
        return cls(Pairs(codes_P, num_classes, num_attributes), counts_P.astype(np.int64))

    @classmethod
    def of_table(cls, counts_CA: Ints) -> AttributeCounts:
        """Reads a table of classes by attributes."""
        by_code = counts_CA.T.reshape(-1)
        codes_P = np.flatnonzero(by_code)
        return cls(Pairs(codes_P, *counts_CA.shape), by_code[codes_P])

    @classmethod
    def of_rows(cls, rows: Sequence[Row], num_attributes: int) -> AttributeCounts:
        """Reads what ``to_rows`` returns."""
        found = [
            (int(attribute) * len(rows) + label, count)
            for label, row in enumerate(rows)
            for attribute, count in (enumerate(row) if isinstance(row, list) else row.items())
            if count
        ]
        table_P2 = np.array(sorted(found), np.int64).reshape(-1, 2)
        return cls(Pairs(table_P2[:, 0], len(rows), num_attributes), table_P2[:, 1])

    def to_rows(self) -> list[Row]:
        """Returns a JSON row for each class: its counts by attribute, or where most are 0, those above 0 by attribute id."""
        pairs = self.pairs
        if 2 * len(self.counts_P) >= pairs.num_classes * pairs.num_attributes:
            return list(self.table_CA().tolist())
        rows: list[dict[str, int]] = [{} for _ in range(pairs.num_classes)]
        columns = (pairs.labels_P, pairs.attributes_P, self.counts_P)
        for label, attribute, count in zip(*(column.tolist() for column in columns), strict=True):
            rows[label][str(attribute)] = count
        return list(rows)

    def table_CA(self) -> Ints:
        """Returns the table of classes by attributes."""
        counts_CA = np.zeros((self.pairs.num_classes, self.pairs.num_attributes), np.int64)
        counts_CA[self.pairs.labels_P, self.pairs.attributes_P] = self.counts_P
        return counts_CA
