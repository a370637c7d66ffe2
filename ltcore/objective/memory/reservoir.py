"""A keyed sample of vectors: per group, the ``slots`` rows with the largest keys.

A key is a hash of what the row is (sample, copy, location), so what is kept depends on neither order, batch size nor
ranks: the sample of a union is the sample of the samples. Keys are positive; 0 marks an empty slot.
Shapes: G groups, S slots per group, D dimensions, n rows added. Cost: O(n) per step, and once per ``LOOSE_ROWS`` rows
a sort of G*S + LOOSE_ROWS keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore import dist

LOOSE_ROWS = 8192
"""Rows that may wait before they are sorted in."""


class KeyedReservoir:
    """Bottom-up mergeable sample. All state is in ``state()``; slots are sorted by descending key."""

    def __init__(self, groups: int, slots: int, dim: int) -> None:
        self.groups, self.slots = groups, slots
        self._state = {
            "reservoir_keys": torch.zeros(groups, slots, dtype=torch.int64),
            "reservoir_labels": torch.zeros(groups, slots, dtype=torch.int64),
            "reservoir_vectors": torch.zeros(groups, slots, dim),
        }
        self._loose: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, keys_n: Tensor, groups_n: Tensor, labels_n: Tensor, vectors_nD: Tensor) -> None:
        """Takes in rows; a row with key 0 is ignored."""
        vectors_nD = vectors_nD.to(self._state["reservoir_vectors"].dtype)
        self._loose.append((groups_n, keys_n, labels_n, vectors_nD))
        if sum(len(keys) for _, keys, _, _ in self._loose) >= LOOSE_ROWS:
            self._sort_in()

    def state(self) -> dict[str, Tensor]:
        """keys [G, S], labels [G, S], vectors [G, S, D]; the tensors themselves."""
        self._sort_in()
        return self._state

    def clear(self) -> None:
        self._loose = []
        for tensor in self._state.values():
            tensor.zero_()

    def gather(self) -> tuple[Tensor, Tensor]:
        """(vectors [R, D], labels [R]) of the sample over all ranks, by descending key. A collective.

        Keys travel first; then every rank puts its surviving vectors into their slots and the slots are summed, so no
        rank ever holds the vectors of all ranks.
        """
        mine = self.state()
        source_GS, keys_GS = _survivors(dist.gather(mine["reservoir_keys"][None]))
        slot_GS, own_GS = source_GS % self.slots, source_GS // self.slots == dist.rank()
        labels_GS = dist.all_reduce_sum_(mine["reservoir_labels"].gather(1, slot_GS) * own_GS)
        vectors_GSD = mine["reservoir_vectors"].take_along_dim(slot_GS[:, :, None], 1) * own_GS[:, :, None]
        order_R = keys_GS.flatten().argsort(descending=True)[: int((keys_GS > 0).sum())]
        return dist.all_reduce_sum_(vectors_GSD).flatten(0, 1)[order_R], labels_GS.flatten()[order_R]

    def to(self, device: torch.device) -> None:
        self._state = {name: tensor.to(device) for name, tensor in self.state().items()}

    def _sort_in(self) -> None:
        if not self._loose:
            return
        state, loose = self._state, [torch.cat(column) for column in zip(*self._loose, strict=True)]
        device = state["reservoir_keys"].device
        group_ids = torch.arange(self.groups, device=device)
        groups_n = torch.cat([group_ids.repeat_interleave(self.slots), loose[0]])
        keys_n = torch.cat([state["reservoir_keys"].flatten(), loose[1]])
        order_n = keys_n.argsort(descending=True, stable=True)
        order_n = order_n[groups_n[order_n].argsort(stable=True)]
        # every group brings its own slots, filled or not, so each has at least S rows to take
        first_G = torch.searchsorted(groups_n[order_n], group_ids)
        source_GS = order_n[first_G[:, None] + torch.arange(self.slots, device=device)]
        self._state = {
            "reservoir_keys": keys_n[source_GS],
            "reservoir_labels": torch.cat([state["reservoir_labels"].flatten(), loose[2]])[source_GS],
            "reservoir_vectors": torch.cat([state["reservoir_vectors"].flatten(0, 1), loose[3]])[source_GS],
        }
        self._loose = []


def join(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state of one reservoir that saw what several saw."""
    source_GS, keys_GS = _survivors(torch.stack([state["reservoir_keys"] for state in states]))
    labels_GM = torch.cat([state["reservoir_labels"] for state in states], 1)
    vectors_GMD = torch.cat([state["reservoir_vectors"] for state in states], 1)
    return {
        "reservoir_keys": keys_GS,
        "reservoir_labels": labels_GM.gather(1, source_GS),
        "reservoir_vectors": vectors_GMD.take_along_dim(source_GS[:, :, None], 1),
    }


def _survivors(keys_WGS: Tensor) -> tuple[Tensor, Tensor]:
    """Of W reservoirs' keys: [G, S] positions w*S + s of the largest per group, and [G, S] their keys."""
    keys_GM = keys_WGS.transpose(0, 1).flatten(1)
    order_GS = keys_GM.argsort(dim=1, descending=True, stable=True)[:, : keys_WGS.shape[2]]
    return order_GS, keys_GM.gather(1, order_GS)
