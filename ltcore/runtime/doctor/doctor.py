"""The doctor's round: this machine, or every node of the Ray cluster at the same time, and the table of what was found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ltcore.plugins.loading import known
from ltcore.reporting.terminal import Terminal, styled
from ltcore.runtime.autoscaler import launch_refusal
from ltcore.runtime.cluster import Cluster, started_here
from ltcore.runtime.doctor.checks import GREEN, RED, YELLOW, Check, capacity, checks, refuse_red, tracking, verdict
from ltcore.runtime.doctor.probe import examine, leave_marker, remove_marker
from ltcore.runtime.leaving import leaving_nodes
from ltcore.runtime.placement import Placement

ANSWER_S = 150.0
"""A node that does not answer within this is red: its worker processes cannot start, or it is gone. Ray gives a process 60 s
to start and then tries another, which an overloaded node may need."""
SLOW_S = 15.0
"""After this long the nodes that are waited for are named."""


def examine_here(root: str, data_uri: str, *, ask: bool = False) -> list[Check]:
    """Examines this machine alone; starts no Ray."""
    marker = leave_marker(root)
    try:
        report = examine(root, data_uri, marker, shared=False, plugins=_plugins())
    finally:
        remove_marker(root, marker)
    return [*checks(report, "this machine", report, {"CPU": len(os.sched_getaffinity(0))}), tracking(ask=ask)]


def examine_nodes(root: str, data_uri: str, console: Terminal, *, ask: bool = False) -> list[Check]:
    """Examines every node that is there now and stays, and says which are slow to answer.

    Whether nodes that come later have the driver's code is checked by the runs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    remote: Any = ray.remote(examine)
    nodes = _staying(ray.nodes())
    marker = leave_marker(root)
    try:
        plugins = _plugins()
        lead = examine(root, data_uri, marker, shared=True, plugins=plugins)
        asked = {}
        for node in nodes:
            task = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=On(node["NodeID"], soft=False))
            asked[task.remote(root, data_uri, marker, True, plugins)] = node
        done, slow = ray.wait(list(asked), num_returns=len(asked), timeout=SLOW_S)
        if slow:
            names = ", ".join(str(asked[ref]["NodeManagerAddress"]) for ref in slow[:5])
            more = f" and {len(slow) - 5} more" if len(slow) > 5 else ""
            console.print(f"waiting up to {ANSWER_S:.0f} s for an answer of {names}{more}")
            done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S - SLOW_S)
        found = []
        for ref, node in asked.items():
            name = node["NodeManagerAddress"]
            try:
                assert ref in done, f"no answer within {ANSWER_S:.0f} s"
                found += checks(ray.get(ref), name, lead, node["Resources"])
            except (ray.exceptions.RayError, AssertionError) as error:
                if node["NodeID"] not in {staying["NodeID"] for staying in _staying(ray.nodes())}:
                    found.append(Check(name, "examination", "the node left meanwhile", YELLOW))
                    continue
                said = str(error).strip().splitlines()[-1][:200]
                fix = "look at its logs (`ray logs --node-ip`), or run `ray up` again: it has no ltcore, or other Ray"
                found.append(Check(name, "examination", said, RED, fix))
    finally:
        remove_marker(root, marker)
    return [*found, tracking(ask=ask), *_starting()]


def _staying(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the nodes that are there and not about to be taken away."""
    leaving = leaving_nodes()
    return [node for node in nodes if node["Alive"] and node["NodeID"] not in leaving]


def _starting() -> list[Check]:
    """Returns whether the head may start workers, where the cloud can be asked."""
    refusal = launch_refusal()
    if refusal is None:
        return []
    fix = "give the head a profile with ec2:RunInstances and iam:PassRole (the policies in cluster.yaml), then `ray up` again"
    state = (RED, fix) if refusal else (GREEN, "")
    return [Check("cluster", "starting workers", refusal or "allowed", *state)]


def _plugins() -> tuple[str, ...]:
    """Returns the plugins whose versions all nodes should have: those that are known here."""
    return tuple(plugin.name for plugin in known())


def check_nodes(cluster: Cluster, placement: Placement, root: str, data_uri: str, console: Terminal) -> None:
    """Examines all nodes before a start and says what is wrong, if anything.

    Raises ConfigError where a run would only fail later. A Ray that this process has started is examined from here,
    which takes no time: its workers have the same code, versions and disks.
    """
    here = cluster.local or started_here()
    found = examine_here(root, data_uri) if here else examine_nodes(root, data_uri, console)
    found.append(capacity(placement))
    if verdict(found)[0] != GREEN or not cluster.local:
        show(found, console, only_problems=True)
    refuse_red(found)


def show(found: Sequence[Check], console: Terminal, *, only_problems: bool = False) -> None:
    """Prints the table and the verdict under it; nodes with equal lines share one row."""
    colors = {GREEN: "green", YELLOW: "yellow", RED: "red"}
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for check in found:
        rows.setdefault((check.what, check.found, check.state, check.fix), []).append(check.where)
    table = Table("check", "found", "nodes", "state")
    for (what, value, state, fix), nodes in rows.items():
        where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
        if state != GREEN or not only_problems:
            table.add_row(what, value, where, styled((state, colors[state]), f": {fix}" if fix else ""))
    if table.row_count:
        console.print(table)
    state, sentence = verdict(found)
    console.print(styled("doctor: ", (sentence, colors[state])))
