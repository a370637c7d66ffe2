"""Drains this machine's Ray node, as a command of its own: ``python -m ltcore.runtime.drain SECONDS_LEFT WHY``.

The watcher of spot notices starts it when one has come, and so stays without Ray until then; a pod's preStop hook can.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ltcore.errors import ConfigError


def own_nodes(address: str) -> list[str]:
    """Returns the ids of the cluster's nodes that are processes of this machine: one, outside tests."""
    from ray._private.services import find_node_ids
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

    alive = {
        node_id.hex()
        for node_id, info in GcsClient(address=address).get_all_node_info(timeout=10).items()
        if info.state == 0
    }
    return sorted(alive & set(find_node_ids()))


def main(argv: Sequence[str] | None = None) -> int:
    """Drains the node, with a third argument the one of that id."""
    seconds_left, why, *node = sys.argv[1:] if argv is None else argv
    from ray.scripts.scripts import drain_node

    from ltcore.runtime.cluster_address import noted_address

    address = os.environ.get("RAY_ADDRESS") or noted_address()
    nodes = node or (own_nodes(address) if address else [])
    if not nodes:
        raise ConfigError("No Ray runs on this machine, so there is no node to drain.")
    for node_id in nodes:
        options = {
            "--address": address,
            "--node-id": node_id,
            "--reason": "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message": why,
            "--deadline-remaining-seconds": seconds_left,
        }
        drain_node.main([word for pair in options.items() for word in pair], standalone_mode=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(str(error))
