"""Collectives that have no effect in a single process.

Convention for every loss in this project: the *mean over ranks* of the returned values is the loss of the global batch,
because DistributedDataParallel averages gradients. A rank's local sum is therefore divided by the *global* count and
multiplied by the world size, and ``gather_with_grad`` sums gradients over ranks in its backward pass.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from ltcore.retry import listeners, still_here

_expected = 1
_FAILED = "failed"
LOOK_S = 0.5
"""Between two looks at who has come to a meeting."""
SIGN_S = 5.0
SILENCE_S = 1800.0
"""How long a rank may be silent before a meeting, as a run may before its first step."""


@contextlib.contextmanager
def expecting(world: int) -> Iterator[None]:
    """Requires a process group of ``world`` ranks inside the block.

    Ray destroys the group of workers that it is about to replace while they still train. Without this check each worker
    would then continue as if it were a single process.
    """
    global _expected
    _expected = world
    try:
        yield
    finally:
        _expected = 1


def is_distributed() -> bool:
    """Tells whether there is a process group of more than one rank.

    Raises RuntimeError where ``expecting`` requires a group and it has ended.
    """
    found = td.is_available() and td.is_initialized() and td.get_world_size() > 1
    if not found and _expected > 1:
        raise RuntimeError(f"The process group of {_expected} ranks has ended, so this rank stops as well.")
    return found


def rank() -> int:
    """Returns the number of this process in 0..W-1; 0 for a single process."""
    return td.get_rank() if is_distributed() else 0


def world() -> int:
    """Returns W, the number of ranks; 1 for a single process."""
    return td.get_world_size() if is_distributed() else 1


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Sums over ranks in place; returns the same tensor."""
    if is_distributed():
        td.all_reduce(tensor)
    return tensor


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Copies from rank ``source`` in place; returns the same tensor."""
    if is_distributed():
        td.broadcast(tensor, source)
    return tensor


def broadcast_object(value: Any, source: int = 0) -> Any:
    """Returns the ``value`` of rank ``source`` (plain JSON-like objects only)."""
    if not is_distributed():
        return value
    box = [value]
    td.broadcast_object_list(box, source)
    return box[0]


def gather(tensor: Tensor) -> Tensor:
    """Returns [W*B, ...] of all ranks in rank order, without gradient. Every rank passes the same shape."""
    if not is_distributed():
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world())]
    td.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def collect(tensor: Tensor) -> list[Tensor]:
    """Returns the tensors of all ranks in rank order on rank 0, and nothing on other ranks.

    They are in host memory (for a single process, it is the tensor itself). Every rank passes the same shape and needs
    memory for one more such tensor on its device, whatever the number of ranks.
    """
    if not is_distributed():
        return [tensor.detach()]
    parts = []
    for source in range(world()):
        held = tensor.detach().contiguous() if rank() == source else torch.empty_like(tensor)
        td.broadcast(held, source)
        if rank() == 0:
            parts.append(held.cpu())
    return parts


def hand_out(parts: list[Tensor], like: Tensor) -> Tensor:
    """Returns ``parts[r]`` of rank 0 on rank r, the inverse of ``collect``.

    Ranks other than 0 pass nothing. The result is on the device of ``like``, which has its shape and type. Every rank
    needs memory for one more such tensor, whatever the number of ranks.
    """
    if not is_distributed():
        return parts[0]
    mine = like
    for target in range(world()):
        held = parts[target].to(like.device).contiguous() if rank() == 0 else torch.empty_like(like)
        td.broadcast(held, 0)
        mine = held if target == rank() else mine
    return mine


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = all_reduce_sum_(grads[0].contiguous().clone())
        return total.chunk(world())[rank()]


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Returns [W*B, ...] of all ranks in rank order, with gradient.

    The backward pass sums the gradients of all ranks.
    """
    return _GatherWithGrad.apply(tensor) if is_distributed() else tensor


def barrier() -> None:
    """Waits for all ranks."""
    if is_distributed():
        td.barrier()


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Waits at the end of the block for all ranks, for as long as each of them gives signs of life (``still_here``).

    Collectives give up after minutes, which is right within a step, and too early where one node has the images of a data set
    and another has yet to decode them. Raises RuntimeError where the block failed on another rank, or one was silent for
    ``SILENCE_S``.
    """
    if not is_distributed():
        yield
        return
    store = td.distributed_c10d._get_default_store()  # each kind of group has one; there is no public way to it
    place = f"ltcore/meeting {store.add(f'ltcore/meetings of {rank()}', 1)}/"
    signs = _Signs(store, f"{place}signs of ")
    listeners["meeting"] = signs.give
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the store is gone with its rank; what failed here says more
            store.set(f"{place}{rank()}", _FAILED)
        raise
    finally:
        del listeners["meeting"]
    store.set(f"{place}{rank()}", "here")
    while missing := [each for each in range(world()) if not store.check([f"{place}{each}"])]:
        signs.look_for(missing)
        still_here()
        time.sleep(LOOK_S)
    if _FAILED.encode() in (store.get(f"{place}{each}") for each in range(world())):
        raise RuntimeError("Another rank failed before all had met, so this rank stops as well.")


class _Signs:
    """Signs of life of the ranks that have not come to a meeting yet, counted in the group's store."""

    def __init__(self, store: td.Store, place: str) -> None:
        self._store, self._place, self._given = store, place, -math.inf
        self._own = f"{place}{rank()}"
        began = time.monotonic()
        self._seen = dict.fromkeys(range(world()), (0, began))
        """Rank -> how many there were, and when that was new."""

    def give(self) -> None:
        """Adds one of this rank, where the last is some seconds old."""
        if time.monotonic() - self._given > SIGN_S:
            self._given = time.monotonic()
            with contextlib.suppress(Exception):  # the store is gone: said where the ranks meet
                self._store.add(self._own, 1)

    def look_for(self, ranks: list[int]) -> None:
        """Raises RuntimeError where one of the ranks has given no sign for too long."""
        for each in ranks:
            count = self._store.add(f"{self._place}{each}", 0)
            if count != self._seen[each][0]:
                self._seen[each] = (count, time.monotonic())
            if (silent_s := time.monotonic() - self._seen[each][1]) > SILENCE_S:
                raise RuntimeError(
                    f"Rank {each} has said nothing of its data for {silent_s:.0f} s, so this rank stops."
                )
