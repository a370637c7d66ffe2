"""``ltcore doctor``."""

from __future__ import annotations

import os

from ltcore.config.execution import PlaceArgs
from ltcore.reporting.terminal import Terminal
from ltcore.runtime.cluster import Cluster, connect, disconnect, noted_address, on_cluster_node
from ltcore.runtime.doctor import checks as doctor
from ltcore.runtime.place import check_storage, choose_engine, choose_scaling, storage_root
from ltcore.runtime.placement import demand


def examination(storage: str | None, data: str | None, max_gpus: float | None) -> int:
    """Examines this machine, or every node of the cluster that it belongs to; prints one table and one verdict.

    Returns the exit code: 0 where a run would start, 1 where it would be refused.
    """
    root = storage_root(storage or os.environ.get("LTCORE_STORAGE"))
    data_uri = data or os.environ.get("LTCORE_DATA") or ""
    console = Terminal()
    if on_cluster_node() or noted_address():
        cluster = connect()
        try:
            found = _of_cluster(cluster, root, data_uri, max_gpus)
        finally:
            disconnect()
    else:
        found = doctor.examine_here(root, data_uri, ask=True)
    from ltcore.runtime.doctor.doctor import show

    show(found, console)
    return int(doctor.verdict(found)[0] == doctor.RED)


def _of_cluster(cluster: Cluster, root: str, data_uri: str, max_gpus: float | None) -> list[doctor.Check]:
    from ltcore.runtime.doctor.doctor import examine_nodes

    place = PlaceArgs(
        engine="auto",
        workers=None,
        cpus_per_worker=None,
        gpus_per_worker=None,
        max_gpus=max_gpus,
        storage=root,
        fresh=False,
        dry_run=True,
        debug=False,
    )
    check_storage(root, cluster)
    engine = choose_engine(place, cluster)
    need = demand(choose_scaling(place, cluster, engine), engine, streams=False)
    return examine_nodes(cluster, root, data_uri, need, max_gpus, ask=True)
