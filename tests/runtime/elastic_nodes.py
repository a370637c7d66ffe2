"""An elastic run on a Ray of two nodes on this machine, of which the second comes and is killed while it trains.

Run as ``python -m tests.runtime.elastic_nodes DATA RUN``: it leaves when the run has started with 1, 2 and 1 workers and has
trained some epochs more. What was trained stands in the run's folder.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 240.0
"""For one change of the group: Ray looks for room every 60 s, and starts processes on a busy machine."""
MORE_EPOCHS = 3


def settings() -> dict[str, Any]:
    """Steps too small to move a weight: losses of epochs then depend on the images that they saw, and on little else."""
    from tests.training.runs import tiny_run

    return tiny_run(
        model__ghost_batch=4,
        train__optim__lr=1e-12,
        train__optim__weight_decay=0.0,
        train__epochs=100_000,
        train__eval_every=1000,
    ).to_dict()


def until(what: str, fulfilled: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not fulfilled():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(0.5)
    print(what, flush=True)


def main(uri: str, folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from ltcore.config.records import RunRecord
    from ltcore.runtime.cluster import quiet
    from ltcore.runtime.placement import Scaling
    from ltcore.runtime.ray_train import fit_with_train
    from ltcore.storage import read_jsonl
    from ltcore.training.record import RunInfo
    from ltcore.training.run import Job

    quiet()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    ray.init(address=cluster.address, log_to_driver=False)
    job = Job(config=settings(), data_uri=uri, run_uri=str(folder), info=RunInfo(id="elastic"), cpus=1)
    trained = threading.Thread(
        target=fit_with_train, args=(job, Scaling(workers=1, max_workers=2), None, []), daemon=True
    )
    trained.start()

    def worlds() -> list[int]:
        record = RunRecord.read(folder)
        return [start.world for start in record.starts or ()] if record is not None else []

    def epochs() -> int:
        file = folder / "metrics.jsonl"
        return len(read_jsonl(file)) if file.is_file() else 0

    until("one worker trains", lambda: worlds() == [1] and epochs() >= MORE_EPOCHS)
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    until("two workers train", lambda: worlds() == [1, 2])
    before = epochs()
    until("two workers have trained", lambda: epochs() >= before + MORE_EPOCHS)
    cluster.remove_node(node, allow_graceful=False)
    until("one worker trains again", lambda: worlds() == [1, 2, 1])
    before = epochs()
    until("it has trained", lambda: epochs() >= before + MORE_EPOCHS)
    ray.shutdown()
    cluster.shutdown()
    os._exit(0)  # the thread would wait for a Ray that is gone


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(sys.argv[1], Path(sys.argv[2]))
