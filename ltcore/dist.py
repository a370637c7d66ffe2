"""Collectives that have no effect in a single process.

Convention for every loss in this project: the *mean over ranks* of the returned values is the loss of the global batch,
because DistributedDataParallel averages gradients. A rank's local sum is therefore divided by the *global* count and
multiplied by the world size, and ``gather_with_grad`` sums gradients over ranks in its backward pass.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

_expected = 1
_FAILED = "failed"
LOOK_S = 0.5


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
def meeting(while_waiting: Callable[[], None]) -> Iterator[None]:
    """Waits at the end of the block for all ranks, for as long as they take; calls ``while_waiting`` twice a second.

    Collectives give up after minutes, which is right within a step, and too early where one node has the images of a data set
    and another has yet to decode them. Raises RuntimeError where the block failed on another rank; a rank whose process is lost
    is missed by whoever watches over it.
    """
    if not is_distributed():
        yield
        return
    store = td.distributed_c10d._get_default_store()  # each kind of group has one; there is no public way to it
    place = f"ltcore/meeting {store.add(f'ltcore/meetings of {rank()}', 1)}/"
    try:
        yield
    except BaseException:
        store.set(f"{place}{rank()}", _FAILED)
        raise
    store.set(f"{place}{rank()}", "here")
    ranks = [f"{place}{each}" for each in range(world())]
    while not store.check(ranks):
        while_waiting()
        time.sleep(LOOK_S)
    if _FAILED.encode() in (store.get(each) for each in ranks):
        raise RuntimeError("Another rank failed before all had met, so this rank stops as well.")
