"""Blocks come in any order, or not at all; steps come in theirs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ltcore.data.loading.plan import Window
from ltcore.data.loading.sampler import Rows
from ltcore.errors import DataError
from ltcore.runtime.stream_blocks import Block, NothingCameError, Steps


def windows() -> list[Window]:
    index = np.arange(18)
    return [Window(0, first, Rows(index[first * 3 : first * 3 + 6], np.zeros(6, np.int64))) for first in (0, 2, 4)]


def blocks() -> list[Block]:
    """Two of each window, odd and even places, whose image is ten times the index."""
    return [
        {"window": np.full(3, number), "place": np.arange(odd, 6, 2), "image": 10 * window.rows.index_B[odd::2]}
        for number, window in enumerate(windows())
        for odd in (0, 1)
    ]


def test_any_order_of_blocks_gives_the_steps_in_order() -> None:
    for order in itertools.islice(itertools.permutations(blocks()), 0, 720, 37):
        steps = list(Steps(windows(), iter(order), 3))
        assert [step["index"].tolist() for step in steps] == [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(6)]
        assert all((step["image"] == 10 * step["index"]).all() for step in steps)


def test_the_error_of_a_task_is_raised_where_its_rows_are_used() -> None:
    def failing() -> Iterator[Block]:
        yield from blocks()[:2]
        raise DataError("a.tar: damaged")

    steps = Steps(windows(), failing(), 3)
    assert next(steps)["index"].tolist() == [0, 1, 2]
    next(steps)
    with pytest.raises(DataError, match=r"a\.tar: damaged"):
        next(steps)


def test_waiting_ends_and_leaves_no_thread_behind() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def stuck() -> Iterator[Block]:
        try:
            yield from blocks()[:2]
            go_on.wait()
            yield blocks()[2]
        finally:
            ended.set()

    steps = Steps(windows(), stuck(), 3, patience_s=0.05)
    assert len([next(steps), next(steps)]) == 2
    with pytest.raises(NothingCameError):
        next(steps)
    go_on.set()
    steps.close()
    assert ended.wait(5)
