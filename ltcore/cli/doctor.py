"""``ltcore doctor``: examines this machine or its cluster, and says whether a run would start."""

from __future__ import annotations

import os

from ltcore.cli.prepare import storage_root
from ltcore.config.execution import PlaceArgs
from ltcore.errors import CapacityError, ConfigError
from ltcore.reporting.terminal import Terminal
from ltcore.runtime.cluster import connect, disconnect
from ltcore.runtime.cluster_address import noted_address, on_cluster_node
from ltcore.runtime.doctor.checks import RED, Check, capacity, no_capacity, verdict
from ltcore.runtime.doctor.doctor import examine_here, examine_nodes, show
from ltcore.runtime.placement import Placement


def run_doctor(storage: str | None, data: str | None, max_gpus: float | None) -> int:
    """Examines this machine, or every node of its cluster; prints one table and one verdict.

    Returns the exit code: 0 where a run would start, 1 where it would be refused.
    """
    root = storage_root(storage or os.environ.get("LTCORE_STORAGE"))
    data_uri = data or os.environ.get("LTCORE_DATA") or ""
    console = Terminal()
    if on_cluster_node() or noted_address():
        found = _examine_cluster(root, data_uri, max_gpus, console)
    else:
        if max_gpus is not None:
            raise ConfigError("--max-gpus is about a cluster, and this machine belongs to none. Leave it out.")
        found = examine_here(root, data_uri, ask=True)
    show(found, console)
    return int(verdict(found)[0] == RED)


def _examine_cluster(root: str, data_uri: str, max_gpus: float | None, console: Terminal) -> list[Check]:
    cluster = connect()
    try:
        try:
            fits = capacity(Placement.decide(PlaceArgs(max_gpus=max_gpus), cluster, root))
        except CapacityError as error:
            fits = no_capacity(error)
        return [*examine_nodes(root, data_uri, console, ask=True), fits]
    finally:
        disconnect()
