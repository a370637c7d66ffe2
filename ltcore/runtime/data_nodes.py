"""Which CPUs of which nodes decode for which worker: those that no run has reserved."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeCpus:
    """The CPUs of one node."""

    node_id: str
    total: int
    reserved: float = 0.0
    """By workers of this and of other runs, for as long as they run."""

    @property
    def free(self) -> int:
        """Returns the CPUs that data tasks may take."""
        return max(0, int(self.total - self.reserved))


def dealt(nodes: list[NodeCpus], rank: int, world: int) -> dict[str, int]:
    """Returns node -> data tasks at a time, of one of the ``world`` workers that share all free CPUs.

    The CPUs are dealt out one by one, node after node. So no two workers count on the same one, each gets as many as the
    others, give or take one, and has its own on few nodes where there are more workers than CPUs on a node. Empty where this
    worker gets none.
    """
    share: dict[str, int] = {}
    dealt_before = 0
    for node in sorted(nodes, key=lambda node: node.node_id):
        mine = len(range((rank - dealt_before) % world, node.free, world))
        if mine:
            share[node.node_id] = mine
        dealt_before += node.free
    return share


class DataNodes:
    """The CPUs of the cluster as seen by one worker.

    Runs reserve CPUs by placement groups, which Ray lists, or as plain tasks, which it does not: theirs are what is taken when
    the worker starts, before its first data task, and no placement group explains.
    """

    def __init__(self) -> None:
        import ray
        from ray._private.state import available_resources_per_node

        groups, available = _reserved_by_groups(), available_resources_per_node()
        self._plain: dict[str, float] = {}
        for node in ray.nodes():
            total, free = (found.get("CPU", 0.0) for found in (node["Resources"], available.get(node["NodeID"], {})))
            self._plain[node["NodeID"]] = max(0.0, total - free - groups[node["NodeID"]])

    def now(self) -> list[NodeCpus]:
        """Returns the nodes that are there now, of which some may have come since the worker started."""
        import ray

        groups = _reserved_by_groups()
        return [
            NodeCpus(name, int(node["Resources"].get("CPU", 0.0)), groups[name] + self._plain.get(name, 0.0))
            for node in ray.nodes()
            if node["Alive"] and (name := node["NodeID"])
        ]


def _reserved_by_groups() -> defaultdict[str, float]:
    """Returns node -> CPUs that placement groups hold there."""
    from ray.util import placement_group_table

    held: defaultdict[str, float] = defaultdict(float)
    for group in placement_group_table().values():
        if group["state"] != "REMOVED":
            for bundle, node_id in group["bundles_to_node_id"].items():
                held[node_id] += group["bundles"][bundle].get("CPU", 0.0)
    return held
