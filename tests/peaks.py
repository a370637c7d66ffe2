"""Memory and time that something takes: what bounds are about."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextlib.contextmanager
def within(memory_bytes: int, cpu_s: float) -> Iterator[None]:
    """Fails where the block makes this process larger by more bytes, at any time, or takes more of the processor's time.

    That counts also what decoders and parsers outside of Python hold. Only Linux tells a peak that can be reset; elsewhere
    the time alone is looked at. Waiting for others' processes is none of the time.
    """
    told = _RESET.exists()
    before = _reset() if told else 0
    started = time.process_time()
    yield
    used_s = time.process_time() - started
    grown = _status("VmHWM") - before if told else 0
    assert grown <= memory_bytes, f"{grown / 2**20:.0f} MiB, expected at most {memory_bytes / 2**20:.0f}"
    assert used_s <= cpu_s, f"{used_s:.1f} s, expected at most {cpu_s:g}"


def _reset() -> int:
    """Makes the peak what is held now, and returns that."""
    _RESET.write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
