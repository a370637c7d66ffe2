"""What a place lies on: a disk, small disks that a fault can fill, an object store behind a proxy, or a Ray of two nodes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.harness import RAYS_ACTORS, Place, place
from tests.faults import file_system
from tests.flaky import flaky
from tests.paths import ROOT
from tests.s3 import Server, make_bucket

Words = Callable[..., list[str]]
"""(shards, folder, key__of__the__configuration=value ...) -> the words of a command."""
DISK_BYTES = 64 * 2**30
"""Of the disks that can be filled, in memory that they take only as they are used: what the doctor finds enough."""


@dataclass(frozen=True)
class Site:
    """What a place is made from: data, a folder of its own, and the server of those that store elsewhere."""

    shards: str
    folder: Path
    server: Server | None = None


def can_mount() -> bool:
    """Tells whether a small disk can be made here."""
    return os.geteuid() == 0


LEFT = """
import json, sys, ray
from ray._private.state import actors
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
found = [f"actor {a['ActorClassName']} {a['Name']}: {a['State']}" for a in actors().values() if a["State"] != "DEAD"]
groups = ray.util.placement_group_table().values()
print(json.dumps(found + [f"placement group {g['name']}: {g['state']}" for g in groups if g["state"] != "REMOVED"]))
"""


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
def stored(site: Site, script: str, words: Words, **fields: Any) -> Iterator[Place]:
    """Results in an object store of the tests' own, which the command reaches through a proxy that can fail."""
    assert site.server is not None
    bucket = make_bucket(site.server)
    with flaky(site.server.endpoint) as proxy:
        environment = {**site.server.environment, "AWS_ENDPOINT_URL": proxy.endpoint, **fields.pop("environment", {})}
        given = words(site.shards, site.folder)
        given[given.index("--storage") + 1] = f"{bucket.uri}/runs"
        fields |= {"environment": environment, "bucket": bucket, "proxy": proxy}
        with place(script, given, "small", site.folder, **fields) as where:
            yield where


class Nodes:
    """A Ray on this machine: the head, on which nothing trains, and nodes of ``cpus`` that come and go."""

    def __init__(self, folder: Path, environment: Mapping[str, str], cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self._folder, self._environment, self._cpus, self._added = folder, environment, cpus, 0
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **self._disk()})
        self._nodes: list[Any] = []
        self.add()

    def __len__(self) -> int:
        """Returns the number of nodes that can train."""
        return len(self._nodes)

    @property
    def caches(self) -> list[Path]:
        """Returns the caches of the nodes that can train."""
        return [self._folder / f"cache-{n}" for n in range(self._added - len(self) + 1, self._added + 1)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        """A node comes."""
        self._nodes.append(self._cluster.add_node(num_cpus=self._cpus, **self._disk()))

    def lose(self) -> None:
        """Kills the raylet of the node that came first, with which all its processes end."""
        node = self._nodes.pop(0)
        (raylet,) = node.all_processes["raylet"]
        raylet.process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def take_back(self, seconds: int) -> None:
        """Announces the end of the node that came first, as the watcher of spot notices does; then it ends."""
        drain = [sys.executable, "-m", "ltcore.runtime.drain", str(seconds), "taken back", self._nodes[0].node_id]
        subprocess.run(drain, env={**os.environ, "RAY_ADDRESS": self.address}, check=True, capture_output=True)
        time.sleep(seconds)
        self.lose()

    def left(self) -> list[str]:
        """Returns what there still is of commands that have ended: actors that live, and placement groups."""
        asked = [sys.executable, "-c", LEFT, self.address]
        found: list[str] = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
        return [left for left in found if f"ray::{left.split()[1].rpartition('.')[2].rstrip(':')}" not in RAYS_ACTORS]

    def end(self) -> None:
        self._cluster.shutdown()

    def _disk(self) -> dict[str, Any]:
        """Every node has a cache of its own."""
        self._added += 1
        own = {"LTCORE_CACHE": str(self._folder / f"cache-{self._added}"), "PYTHONPATH": str(ROOT)}
        return {"object_store_memory": 80 * 2**20, "env_vars": {**self._environment, **own}}


@contextlib.contextmanager
def two_nodes(site: Site, script: str, words: Words) -> Iterator[Place]:
    """Results in an object store, computed on a node that can be lost."""
    with _on_nodes(site, script, words, cpus=2) as where:
        yield where


@contextlib.contextmanager
def one_or_two_nodes(site: Site, script: str, words: Words) -> Iterator[Place]:
    """The same on nodes with room for a worker each, of which there is one in the beginning."""
    with _on_nodes(site, script, words, cpus=1) as where:
        yield where


@contextlib.contextmanager
def _on_nodes(site: Site, script: str, words: Words, cpus: int) -> Iterator[Place]:
    assert site.server is not None
    # A node has its rights by itself, as by an instance profile.
    nodes = Nodes(site.folder, site.server.environment, cpus)
    try:
        with stored(site, script, words, nodes=nodes, environment={"RAY_ADDRESS": nodes.address}) as where:
            yield where
    finally:
        nodes.end()
