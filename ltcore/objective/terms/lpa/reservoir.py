"""A keyed sample of vectors: per group, the ``slots`` rows with the largest keys.

A key is a hash of the identity of a row (sample, copy, location), so the sample does not depend on order, batch size or
ranks: the sample of a union is the sample of the samples. Keys are positive; 0 marks an empty slot.

Shapes: G groups, S slots per group, M = G*S, D dimensions, n rows added. Memory: G*S*(4D + 24) bytes (vectors float32;
keys, labels and places int64), allocated once and changed in place, plus up to ``LOOSE_ROWS`` waiting rows.
Cost: once per ``LOOSE_ROWS`` rows a pass over all keys and a sort of those in groups that change. Only vectors that
enter are written; vectors are put in order when the state is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import dist

LOOSE_ROWS = 8192
"""Rows that may wait before they are sorted in."""
ORDER_ROWS = 8192
"""Vectors copied at a time when they are put in order; at least those of one group."""


class KeyedReservoir:
    """Mergeable sample of rows by largest key. All state is in ``state()``; slots are sorted by descending key."""

    def __init__(self, groups: int, slots: int, dim: int) -> None:
        self.groups, self.slots = groups, slots
        self._keys_GS = torch.zeros(groups, slots, dtype=torch.int64)
        self._labels_GS = torch.zeros(groups, slots, dtype=torch.int64)
        self._places_GS = torch.arange(groups * slots).view(groups, slots)
        """Row of ``_vectors_MD`` that holds the vector of a slot; a group keeps its rows."""
        self._vectors_MD = torch.zeros(groups * slots, dim)
        self._loose: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, keys_n: Tensor, groups_n: Tensor, labels_n: Tensor, vectors_nD: Tensor) -> None:
        """Adds rows; a row with key 0 is ignored."""
        self._loose.append((groups_n, keys_n, labels_n, vectors_nD))
        if sum(len(keys) for _, keys, _, _ in self._loose) >= LOOSE_ROWS:
            self._take_in()

    def state(self) -> dict[str, Tensor]:
        """Returns keys [G, S], labels [G, S] and vectors [G, S, D]; the tensors themselves."""
        self._take_in()
        self._order()
        return {
            "reservoir_keys": self._keys_GS,
            "reservoir_labels": self._labels_GS,
            "reservoir_vectors": self._vectors_MD.view(self.groups, self.slots, -1),
        }

    def clear(self) -> None:
        """Empties the reservoir."""
        self._loose = []
        for tensor in (self._keys_GS, self._labels_GS, self._vectors_MD):
            tensor.zero_()
        torch.arange(len(self._vectors_MD), out=self._places_GS.view(-1))

    def gather(self) -> tuple[Tensor, Tensor]:
        """Returns (vectors [R, D], labels [R]) of the sample over all ranks, by descending key. A collective.

        Keys travel first. Then every rank puts its surviving vectors into their slots and the slots are summed, so that
        no rank ever holds the vectors of all ranks.
        """
        self._take_in()
        keys_GS, labels_GS, places_GS = self._keys_GS, self._labels_GS, self._places_GS
        vectors_MD = self._vectors_MD
        if dist.world() > 1:
            source_GS, keys_GS = _survivors(dist.gather(keys_GS[None]))
            slot_GS, own_GS = source_GS % self.slots, source_GS // self.slots == dist.rank()
            labels_GS = dist.all_reduce_sum_(labels_GS.gather(1, slot_GS) * own_GS)
            vectors_MD = vectors_MD[places_GS.gather(1, slot_GS).flatten()].mul_(own_GS.flatten()[:, None])
            dist.all_reduce_sum_(vectors_MD)
            places_GS = torch.arange(len(vectors_MD), device=vectors_MD.device)
        order_R = keys_GS.flatten().argsort(descending=True)[: int((keys_GS > 0).sum())]
        return vectors_MD[places_GS.flatten()[order_R]], labels_GS.flatten()[order_R]

    def to(self, device: torch.device) -> None:
        """Moves all state to the device."""
        self._take_in()
        for name in ("_keys_GS", "_labels_GS", "_places_GS", "_vectors_MD"):
            setattr(self, name, getattr(self, name).to(device))

    def _take_in(self) -> None:
        """Sorts the waiting rows in.

        A row that stays is written to the place of the vector that it replaces.
        """
        if not self._loose:
            return
        groups_n, keys_n, labels_n = (torch.cat(column) for column in list(zip(*self._loose, strict=True))[:3])
        pieces, self._loose = [vectors_nD for *_, vectors_nD in self._loose], []
        better_m = (keys_n > self._keys_GS.amin(1)[groups_n]).nonzero()[:, 0]
        changed_T, own_m = groups_n[better_m].unique(return_inverse=True)
        num_old = len(changed_T) * self.slots
        # For the groups that change: the old slots, then the new rows.
        keys_k = torch.cat([self._keys_GS[changed_T].flatten(), keys_n[better_m]])
        labels_k = torch.cat([self._labels_GS[changed_T].flatten(), labels_n[better_m]])
        groups_T = torch.arange(len(changed_T), device=keys_k.device)
        group_k = torch.cat([groups_T.repeat_interleave(self.slots), own_m])
        order_k = keys_k.argsort(descending=True, stable=True)
        order_k = order_k[group_k[order_k].argsort(stable=True)]
        # Every group contributes its own slots, filled or not, so each has at least S rows to choose from.
        first_T = torch.searchsorted(group_k[order_k], groups_T)
        source_TS = order_k[first_T[:, None] + torch.arange(self.slots, device=keys_k.device)]
        new_TS = source_TS >= num_old
        rows_e = better_m[source_TS[new_TS] - num_old]
        # As many rows leave a group as enter it, so both lists match when ordered by group.
        gone_k = torch.ones(num_old, dtype=torch.bool, device=keys_k.device)
        gone_k[source_TS[~new_TS]] = False
        old_places_k = self._places_GS[changed_T].flatten()
        places_e = old_places_k[gone_k]
        places_TS = torch.empty_like(source_TS)
        places_TS[~new_TS], places_TS[new_TS] = old_places_k[source_TS[~new_TS]], places_e
        self._keys_GS[changed_T], self._labels_GS[changed_T] = keys_k[source_TS], labels_k[source_TS]
        self._places_GS[changed_T] = places_TS
        first = 0
        for vectors_nD in pieces:
            here_e = ((rows_e >= first) & (rows_e < first + len(vectors_nD))).nonzero()[:, 0]
            entering_eD = vectors_nD[rows_e[here_e] - first].to(self._vectors_MD.dtype)
            self._vectors_MD.index_copy_(0, places_e[here_e], entering_eD)
            first += len(vectors_nD)

    def _order(self) -> None:
        """Moves every vector to the row of its slot, in place, some groups at a time."""
        ordered_M = torch.arange(len(self._vectors_MD), device=self._places_GS.device)
        rows = max(1, ORDER_ROWS // self.slots) * self.slots
        for places_m, own_m in zip(self._places_GS.flatten().split(rows), ordered_M.split(rows), strict=True):
            if not torch.equal(places_m, own_m):
                self._vectors_MD[own_m[0] : own_m[-1] + 1] = self._vectors_MD[places_m]
        self._places_GS = ordered_M.view(self.groups, self.slots)


def join(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Joins the states of several reservoirs into that of one reservoir which saw all their rows."""
    source_GS, keys_GS = _survivors(torch.stack([state["reservoir_keys"] for state in states]))
    labels_GM = torch.cat([state["reservoir_labels"] for state in states], 1)
    vectors_GMD = torch.cat([state["reservoir_vectors"] for state in states], 1)
    return {
        "reservoir_keys": keys_GS,
        "reservoir_labels": labels_GM.gather(1, source_GS),
        "reservoir_vectors": vectors_GMD.take_along_dim(source_GS[:, :, None], 1),
    }


def _survivors(keys_WGS: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the positions w*S + s of the largest keys per group, and the keys.

    Both are [G, S]; ``keys_WGS`` are the keys of W reservoirs.
    """
    keys_GM = keys_WGS.transpose(0, 1).flatten(1)
    order_GS = keys_GM.argsort(dim=1, descending=True, stable=True)[:, : keys_WGS.shape[2]]
    return order_GS, keys_GM.gather(1, order_GS)
