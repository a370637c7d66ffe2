"""Counts the hours for which nodes were there: what a sweep cost, whoever asked for the nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from ltcore.runtime.poller import Poller


class NodeHours(Poller):
    """Looks at the cluster every few seconds. ``before`` continues the count of an interrupted sweep."""

    def __init__(self, before: Mapping[str, float], every_s: float = 2.0) -> None:
        super().__init__("node-hours", every_s)
        self._hours = dict(before)
        self.most_nodes = 0
        self._last = time.monotonic()

    def hours(self) -> dict[str, float]:
        """Returns kind of node (head, gpu, cpu) -> hours."""
        return {kind: round(value, 4) for kind, value in self._hours.items()}

    def poll(self) -> bool:
        """Adds the time since the last look for each node that is there."""
        now = time.monotonic()
        try:
            alive = [node for node in ray.nodes() if node["Alive"]]
        except Exception:  # the connection is going down with the driver; nothing is left to count
            return False
        self.most_nodes = max(self.most_nodes, len(alive))
        for node in alive:
            kind = kind_of(node["Resources"])
            self._hours[kind] = self._hours.get(kind, 0.0) + (now - self._last) / 3600
        self._last = now
        return True


def kind_of(resources: Mapping[str, Any]) -> str:
    if "node:__internal_head__" in resources:
        return "head"
    return "gpu" if resources.get("GPU") else "cpu"
