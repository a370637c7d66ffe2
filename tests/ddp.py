"""Runs a function on several gloo ranks and returns what each returned. The function must be importable (top level)."""

from __future__ import annotations

import functools
import io
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as td


def _join(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)


def _call(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        result = io.BytesIO()
        torch.save(fn(*args), result)
        return result.getvalue()
    except BaseException:
        td.destroy_process_group()  # the other ranks must not wait for this one
        raise


@functools.cache
def _ranks(world: int) -> tuple[list[ProcessPoolExecutor], tempfile.TemporaryDirectory[str]]:
    """One process per rank, in one process group, and the folder where they meet. Starting them costs seconds, so all tests of
    a process share them."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    folder, spawn = tempfile.TemporaryDirectory(), get_context("spawn")
    return [
        ProcessPoolExecutor(1, mp_context=spawn, initializer=_join, initargs=(rank, world, folder.name))
        for rank in range(world)
    ], folder


def run_ranks(fn: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """``[fn(*args) of rank 0, ...]``; results are tensors and plain containers. A failing rank fails the call."""
    ranks, _ = _ranks(world)
    calls = [rank.submit(_call, fn, args) for rank in ranks]
    failed = [call for call in wait(calls, return_when=FIRST_EXCEPTION).done if call.exception()]
    if failed:
        for rank in ranks:
            rank.shutdown()
        _ranks.cache_clear()
    return [torch.load(io.BytesIO(call.result()), weights_only=True) for call in [*failed, *calls]]
