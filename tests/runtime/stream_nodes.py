"""A Ray of three nodes on this machine, each with a cache folder of its own, through which one worker streams a data set.

Run as ``python -m tests.runtime.stream_nodes DATA COPY FOLDER``: it prints the CPUs that decoded, and a hash of all batches of
two epochs, streamed from DATA and read from COPY.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ltcore.batch import Batch

EPOCHS, NODES = 2, 3


def digest(batches: Iterable[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for values in (batch.images_VBCHW, batch.labels_B, batch.index_B, batch.copy_B):
            found.update(values.contiguous().numpy().tobytes())
    return found.hexdigest()


def main(uri: str, copy: str, folder: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from ltcore.data.config import DataConfig
    from ltcore.data.loading.factory import make_loader
    from ltcore.runtime.ray_data import RayLoader

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    for number in range(NODES):
        environment = {"LTCORE_CACHE": str(folder / f"node{number}")}
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, env_vars=environment)
    ray.init(address=cluster.address, log_to_driver=False)
    options: dict[str, Any] = {"batch_size": 12, "seed": 3}
    streamed = RayLoader(DataConfig(uri=uri, loader="ray", prefetch_steps=2), uri, epochs=EPOCHS, **options)
    read = make_loader(DataConfig(uri=copy, loader="threads"), copy, **options)
    for name, loader in (("streamed", streamed), ("read", read)):
        print(name, digest(batch for epoch in range(EPOCHS) for batch in loader.train_batches(epoch)), flush=True)
    streamed.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
