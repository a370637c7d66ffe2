"""Work ahead of a loop, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetch(load: Callable[[T], R], items: Iterable[T], *, ahead: int, threads: int) -> Iterator[R]:
    """Yields ``load(item)`` for each item, in order, computed by threads at most ``ahead`` items early.

    An exception is raised at the place of its item. Closing the iterator early, or dropping it, ends the threads.
    """
    pool = ThreadPoolExecutor(min(threads, ahead), thread_name_prefix="ltcore-loader")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(load, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
