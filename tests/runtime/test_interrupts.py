"""Signals while Ray computes runs: the first asks for checkpoints, the second ends everything; handlers go back."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ltcore.errors import Terminated
from ltcore.runtime.heartbeat import SAVE_S, Watchdog
from ltcore.runtime.interrupts import saving_first

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def watchdog(**options: Any) -> Watchdog:
    actor = SimpleNamespace(told=[])
    actor.stop = SimpleNamespace(remote=lambda: actor.told.append("stop"))
    return Watchdog(
        actor, lambda snapshot: None, **{"stall_s": 1e9, "deadline_s": None, "say": lambda _: None, **options}
    )


@pytest.mark.parametrize(("sig", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_asks_for_checkpoints_and_ends_the_command_after_the_block(
    sig: signal.Signals, kind: type[BaseException]
) -> None:
    watch, said, passed = watchdog(), cast("list[str]", []), False
    before = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, saving_first(watch, said.append):
        signal.raise_signal(sig)
        assert watch.saving.is_set() and not watch.stop_wanted, "runs have time to save"
        passed = True
    assert passed and type(caught.value) is kind
    assert said == [
        f"{sig.name}: running trainings save a checkpoint first, within {SAVE_S:g} s. Repeat to stop at once."
    ]
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_the_second_signal_ends_the_block_at_once() -> None:
    watch, said, passed = watchdog(), cast("list[str]", []), False
    with pytest.raises(Terminated), saving_first(watch, said.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        passed = True
    assert not passed and len(said) == 1


def test_without_a_signal_nothing_is_raised_and_another_error_passes() -> None:
    with saving_first(watchdog(), print):
        pass
    with pytest.raises(ZeroDivisionError), saving_first(watchdog(), print):
        raise ZeroDivisionError


def test_other_threads_take_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with saving_first(watchdog(), print):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_runs_that_take_too_long_to_save_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ltcore.runtime.heartbeat.time.monotonic", lambda: now)
    watch = watchdog()
    watch.save_and_end()
    now += SAVE_S
    watch.save_and_end()  # again: it gives no more time
    assert not watch.stop_wanted
    now += 0.1
    assert watch.stop_wanted


def test_the_deadline_asks_for_checkpoints_too_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that was started again meanwhile has not heard it."""
    monkeypatch.setattr("ltcore.runtime.heartbeat.ray.get", lambda ref, timeout: {})
    watch = watchdog(deadline_s=-1.0)
    watch._actor.snapshot = SimpleNamespace(remote=lambda: None)
    watch.poll()
    watch.poll()
    assert watch.out_of_time.is_set() and watch.saving.is_set() and not watch.stop_wanted
    assert watch._actor.told == ["stop", "stop"]
