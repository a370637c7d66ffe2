"""Results of remote runs, with our own errors taken out of Ray's wrapping."""

from __future__ import annotations

from typing import Any

import ray

from ltcore.errors import LtcoreError


def result_of(ref: Any) -> Any:
    """The value of a finished task. An ``LtcoreError`` raised in it is raised here as itself."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LtcoreError):
            raise error.cause from None
        raise LtcoreError(f"A run failed: {error.cause!r}") from error
    except ray.exceptions.RayError as error:
        raise LtcoreError(
            f"A run was lost with its process or node ({type(error).__name__}), several times. The same command continues it."
        ) from error
