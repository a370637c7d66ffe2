"""Where shards of images are written: in this process, or by Ray tasks where there is much to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ltcore.data.datasets.workspace import Engine, Run, here

RAY_FROM = 20_000
"""Images from which ``auto`` starts Ray, which takes some seconds."""


def engine_of(choice: str, say: Callable[[str], None], *, debug: bool = False) -> Engine:
    """Returns the engine that ``--engine`` names: inline, ray or auto."""

    @contextlib.contextmanager
    def engine(num_images: int) -> Iterator[Run]:
        from ltcore.training.hardware import allocated_cpus

        is_large = num_images >= RAY_FROM and allocated_cpus() > 1
        if choice == "inline" or (choice == "auto" and not is_large):
            yield here
            return
        from ltcore.runtime.ray_map import ray_tasks

        with ray_tasks(say, debug=debug) as run:
            yield run

    return engine
