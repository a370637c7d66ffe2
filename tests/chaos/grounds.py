"""What a place lies on: an ordinary disk, small disks that a fault can fill, or an object store behind a proxy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.harness import Place, place
from tests.faults import file_system
from tests.flaky import flaky
from tests.s3 import Server, make_bucket

Words = Callable[..., list[str]]
"""(shards, folder, key__of__the__configuration=value ...) -> the words of a command."""
DISK_BYTES = 128 * 2**20
"""Room for a whole sweep; where results or cached data need more, the fault would not end with the ballast."""


@dataclass(frozen=True)
class Site:
    """What a place is made from: data, a folder of its own, and the server of those that store elsewhere."""

    shards: str
    folder: Path
    server: Server | None = None


def can_mount() -> bool:
    """Tells whether a small disk can be made here."""
    return os.geteuid() == 0


Ground = Callable[[Site, str, Words], contextlib.AbstractContextManager[Place]]
"""(site, script, words) -> a place there."""


@contextlib.contextmanager
def plain(site: Site, script: str, words: Words) -> Iterator[Place]:
    """On the disk."""
    with place(script, words(site.shards, site.folder), "small", site.folder) as where:
        yield where


@contextlib.contextmanager
def logged(site: Site, script: str, words: Words) -> Iterator[Place]:
    """On the disk, and with W&B's process beside every run."""
    given = words(site.shards, site.folder, tracking__wandb="true")
    with place(script, given, "small", site.folder) as where:
        yield where


@contextlib.contextmanager
def small_disks(site: Site, script: str, words: Words) -> Iterator[Place]:
    """Results and cache on a small disk each. Needs root."""
    site.folder.mkdir()
    with contextlib.ExitStack() as stack:
        for name in ("runs", "cache"):
            stack.enter_context(file_system(site.folder / name, f"size={DISK_BYTES}"))
        given = words(site.shards, site.folder)
        disks = (site.folder / "runs", site.folder / "cache")
        # a place's end ends its processes, without which nothing could be unmounted
        yield stack.enter_context(place(script, given, "small", site.folder, disks=disks))


@contextlib.contextmanager
def stored(site: Site, script: str, words: Words) -> Iterator[Place]:
    """Results in an object store of the tests' own, which the command reaches through a proxy that can fail."""
    assert site.server is not None
    bucket = make_bucket(site.server)
    with flaky(site.server.endpoint) as proxy:
        environment = {**site.server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        given = words(site.shards, site.folder)
        given[given.index("--storage") + 1] = f"{bucket.uri}/runs"
        fields = {"environment": environment, "bucket": bucket, "proxy": proxy}
        with place(script, given, "small", site.folder, **fields) as where:
            yield where
