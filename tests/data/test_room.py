"""Room that threads share: never more is held than there is, and nobody waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ltcore.data.room import Room


def test_no_more_is_held_than_there_is() -> None:
    room, lock = Room(10), threading.Lock()
    now = most = 0

    def hold(count: int) -> None:
        nonlocal now, most
        with room.held(count):
            with lock:
                now += min(count, 10)
                most = max(most, now)
            with lock:
                now -= min(count, 10)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [1, 3, 10, 4, 1000, 2, 7] * 60))
    assert most <= 10 and room.take(10, wait=False)


def test_what_is_larger_than_all_of_it_is_let_in_alone() -> None:
    room = Room(10)
    with room.held(1000):
        assert not room.take(1, wait=False)
    assert room.take(1, wait=False)
    assert not room.take(1000, wait=False)


def test_room_is_given_back_by_whoever_fails() -> None:
    room = Room(10)
    with pytest.raises(KeyError), room.held(10):
        raise KeyError
    assert room.take(10, wait=False)
