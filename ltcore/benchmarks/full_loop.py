"""The whole training loop as users run it, measured epoch by epoch in turns with a peer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltcore.benchmarks.harness import Measurement, rate
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.record import RunInfo
from ltcore.training.run import Job, execute


def full_loop(
    config: dict[str, Any], data_uri: str, run_dir: Path, peer: Callable[[], float], rounds: int
) -> list[Measurement]:
    """Trains the run, and after every epoch runs one epoch of the peer. The first epoch of both is not measured."""
    job = Job(
        config=config,
        data_uri=data_uri,
        run_uri=str(run_dir),
        info=RunInfo(id="bench", test=False),
    )
    turns = _Turns(peer, rounds)
    with contextlib.suppress(StopRequested):
        execute(job, turns)
    return turns.measured


class _Turns(LocalContext):
    """A context that measures the time between reports, since the loop reports when an epoch is completely done."""

    def __init__(self, peer: Callable[[], float], rounds: int) -> None:
        super().__init__()
        self.measured: list[Measurement] = []
        self._peer, self._rounds = peer, rounds
        self._turn = -1
        self._since = 0.0
        self._images_seen = 0

    def report(self, metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
        del checkpoint
        own_s = time.perf_counter() - self._since
        images = int(metrics["images_seen"]) - self._images_seen
        self._images_seen += images
        began = time.perf_counter()
        peer_images = self._peer()
        peer_s = time.perf_counter() - began
        if self._turn >= 0:
            self.measured.append(rate("full loop", self._turn, own_s, images))
            self.measured.append(rate("bare: full loop", self._turn, peer_s, peer_images))
        self._turn += 1
        self._since = time.perf_counter()

    def stop_requested(self) -> bool:
        return self._turn >= self._rounds
