"""Nodes that are about to be taken away: Ray starts nothing more there."""

from __future__ import annotations


def leaving_nodes() -> dict[str, int]:
    """Returns node id -> deadline in ms since 1970 of the nodes that are drained; 0 where none was given."""
    import ray._private.state

    found: dict[str, int] = ray._private.state.state.get_draining_nodes()  # there is no public question for it
    return found
