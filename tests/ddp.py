"""Runs a function on several gloo ranks and returns what each returned. The function must be importable (top level)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
import torch.multiprocessing as mp


def _entry(rank: int, world: int, fn: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(fn(*args), f"{folder}/{rank}.pt")
    finally:
        td.destroy_process_group()


def run_ranks(fn: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """``[fn(*args) of rank 0, ...]``; results are tensors and plain containers. A failing rank fails the call."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_entry, args=(world, fn, folder, args), nprocs=world, join=True)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
