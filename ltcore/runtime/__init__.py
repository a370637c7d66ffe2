"""Ray: clusters, placement, workers, streams, heartbeats. Every file is about it."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.runtime.cluster import Cluster as Cluster
    from ltcore.runtime.cluster import connect as connect
    from ltcore.runtime.cluster import disconnect as disconnect
    from ltcore.runtime.placement import Demand as Demand
    from ltcore.runtime.placement import Scaling as Scaling

__all__ = ["Cluster", "Demand", "Scaling", "connect", "disconnect"]

__getattr__ = lazy(
    __name__,
    {
        "Cluster": "ltcore.runtime.cluster",
        "Demand": "ltcore.runtime.placement",
        "Scaling": "ltcore.runtime.placement",
        "connect": "ltcore.runtime.cluster",
        "disconnect": "ltcore.runtime.cluster",
    },
)
