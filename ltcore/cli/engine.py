"""Where shards of images are written: in this process, or by Ray tasks where there is much to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ltcore.data.datasets.workspace import Engine, Run, here
from ltcore.errors import ConfigError, LtcoreError

RAY_FROM = 20_000
"""Images from which ``auto`` starts Ray, which takes some seconds."""


def engine_of(choice: str, say: Callable[[str], None], *, debug: bool = False) -> Engine:
    """Returns the engine that ``--engine`` names: inline, ray or auto."""

    @contextlib.contextmanager
    def engine(num_images: int | None) -> Iterator[Run]:
        from ltcore.training.hardware import allocated_cpus

        if num_images is None and choice == "ray":
            raise ConfigError(
                "--engine ray has no effect on images that do not lie in files of their own: one process reads them, in their "
                "order. Leave it out."
            )
        is_large = num_images is not None and num_images >= RAY_FROM and allocated_cpus() > 1
        if choice == "inline" or (choice == "auto" and not is_large):
            yield here
            return
        with contextlib.ExitStack() as stack:
            yield _started(choice, say, debug, stack)

    return engine


def _started(choice: str, say: Callable[[str], None], debug: bool, stack: contextlib.ExitStack) -> Run:
    """Returns what does the tasks; Ray's ends with the ``stack``.

    Only who asks for Ray joins one that others work in: there tasks would wait for its CPUs, and read with its credentials.
    """
    from ltcore.runtime.cluster_address import cluster_address
    from ltcore.runtime.ray_map import is_connected, ray_tasks

    try:
        if choice == "auto" and not is_connected() and (address := cluster_address()):
            say(f"this process writes all shards: --engine ray would have tasks of the Ray at {address} write them")
            return here
        return stack.enter_context(ray_tasks(say, debug=debug))
    except LtcoreError as error:
        if choice != "auto":
            raise
        say(f"{error} So this process writes all shards.")
        return here
