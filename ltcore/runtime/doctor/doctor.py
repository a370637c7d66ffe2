"""The doctor's round: every node of the cluster examines itself, and capacity is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table

from ltcore.errors import CapacityError
from ltcore.reporting.terminal import Terminal, styled
from ltcore.runtime.autoscaler import launch_refusal
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.doctor import checks as doctor
from ltcore.runtime.doctor.checks import Check
from ltcore.runtime.placement import Demand, capacity_source, concurrency

ANSWER_S = 60.0
"""A node that does not answer within this is red: its worker processes cannot start, or it is gone."""


@ray.remote(num_cpus=0, max_retries=0)
def _examine(*args: Any) -> dict[str, Any]:
    return doctor.examine(*args, shared=True)


def examine_nodes(
    cluster: Cluster, root: str, data_uri: str, need: Demand, max_gpus: float | None, *, ask: bool = False
) -> list[Check]:
    """Every line about every node that is there now. Nodes that come later are held to the driver's code by the runs."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    marker = doctor.leave_marker(root)
    try:
        lead = doctor.examine(root, data_uri, marker, shared=True)
        asked = {
            _examine.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                root, data_uri, marker
            ): node
            for node in nodes
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        found = []
        for ref, node in asked.items():
            name = node["NodeManagerAddress"]
            try:
                assert ref in done, f"no answer within {ANSWER_S:.0f} s"
                found += doctor.checks(ray.get(ref), name, lead, node["Resources"])
            except (ray.exceptions.RayError, AssertionError) as error:
                said = str(error).strip().splitlines()[-1][:200]
                fix = "look at its logs (`ray logs --node-ip`), or run `ray up` again: it has no ltcore, or other Ray"
                found.append(Check(name, "examination", said, doctor.RED, fix))
    finally:
        doctor.remove_markers(root, [marker])
    return [*found, doctor.tracking(ask=ask), *starting(), capacity(cluster, need, max_gpus)]


def starting() -> list[Check]:
    """Whether the head may start workers, where the cloud can be asked."""
    refusal = launch_refusal()
    if refusal is None:
        return []
    fix = "give the head a profile with ec2:RunInstances and iam:PassRole (the policies in cluster.yaml), then `ray up` again"
    state = (doctor.RED, fix) if refusal else (doctor.GREEN, "")
    return [Check("cluster", "starting workers", refusal or "allowed", *state)]


def check_nodes(
    cluster: Cluster, root: str, data_uri: str, need: Demand, max_gpus: float | None, console: Terminal
) -> None:
    """The round before a start: says what is wrong, if anything, and raises where a run would only fail later.

    One machine is examined from this process, which takes no time.
    """
    if cluster.local:
        found = [*doctor.examine_here(root, data_uri), capacity(cluster, need, max_gpus)]
    else:
        found = examine_nodes(cluster, root, data_uri, need, max_gpus)
    if doctor.verdict(found)[0] != doctor.GREEN or not cluster.local:
        show(found, console, only_problems=True)
    doctor.refuse_red(found)


def capacity(cluster: Cluster, need: Demand, max_gpus: float | None) -> Check:
    try:
        count = concurrency(need, cluster, max_gpus=max_gpus)
    except CapacityError as error:
        return Check("cluster", "capacity", str(error).split(". ")[0], doctor.RED, str(error).split(". ", 1)[1])
    return Check(
        "cluster",
        "capacity",
        f"one run takes {need.describe()}; {count} at a time {capacity_source(cluster, max_gpus)}".strip(),
    )


def show(found: Sequence[Check], console: Terminal, *, only_problems: bool = False) -> None:
    """The table, nodes that say the same in one row, and the verdict under it."""
    colors = {doctor.GREEN: "green", doctor.YELLOW: "yellow", doctor.RED: "red"}
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for check in found:
        rows.setdefault((check.what, check.found, check.state, check.fix), []).append(check.where)
    table = Table("check", "found", "nodes", "state")
    for (what, value, state, fix), nodes in rows.items():
        where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
        if state != doctor.GREEN or not only_problems:
            table.add_row(what, value, where, styled((state, colors[state]), f": {fix}" if fix else ""))
    if table.row_count:
        console.print(table)
    state, sentence = doctor.verdict(found)
    console.print(styled("doctor: ", (sentence, colors[state])))
