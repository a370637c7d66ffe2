"""Collectives that do nothing where there is one process.

Convention for every loss in this project: the *mean over ranks* of what the ranks return is the loss of the global batch,
because DistributedDataParallel averages gradients. A rank's local sum is therefore divided by the *global* count and
multiplied by the world size, and ``gather_with_grad`` sums gradients over ranks in its backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

_expected = 1


@contextlib.contextmanager
def expecting(world: int) -> Iterator[None]:
    """Inside, a process group of ``world`` ranks has to be there. Ray ends the group of workers that it is about to replace while
    their training goes on: each would otherwise believe to be alone from one collective to the next."""
    global _expected
    _expected = world
    try:
        yield
    finally:
        _expected = 1


def is_distributed() -> bool:
    """True where a process group has more than one rank. RuntimeError where it should (``expecting``), and has ended."""
    found = td.is_available() and td.is_initialized() and td.get_world_size() > 1
    if not found and _expected > 1:
        raise RuntimeError(f"The process group of {_expected} ranks has ended, and this rank with it.")
    return found


def rank() -> int:
    """Number of this process in 0..W-1; 0 where there is one."""
    return td.get_rank() if is_distributed() else 0


def world() -> int:
    """W, the number of ranks; 1 where there is one process."""
    return td.get_world_size() if is_distributed() else 1


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """In-place sum over ranks; returns the same tensor."""
    if is_distributed():
        td.all_reduce(tensor)
    return tensor


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """In-place copy from rank ``source``; returns the same tensor."""
    if is_distributed():
        td.broadcast(tensor, source)
    return tensor


def broadcast_object(value: Any, source: int = 0) -> Any:
    """``value`` of rank ``source`` (plain JSON-like objects only)."""
    if not is_distributed():
        return value
    box = [value]
    td.broadcast_object_list(box, source)
    return box[0]


def gather(tensor: Tensor) -> Tensor:
    """[W*B, ...] of all ranks in rank order, without gradient. Every rank passes the same shape."""
    if not is_distributed():
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world())]
    td.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def collect(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks in rank order, in the host memory of rank 0 (of one process, the tensor itself); on other
    ranks nothing. Every rank passes the same shape and holds one more tensor of it on its device, however many ranks there are.
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
    """The inverse of ``collect``: rank r gets ``parts[r]`` of rank 0 (other ranks pass nothing) on the device of ``like``, which
    has its shape and type. Every rank holds one more tensor of it, however many ranks there are."""
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
    """[W*B, ...] of all ranks in rank order; the backward pass sums the gradients of all ranks."""
    return _GatherWithGrad.apply(tensor) if is_distributed() else tensor


def barrier() -> None:
    """Waits for all ranks."""
    if is_distributed():
        td.barrier()
