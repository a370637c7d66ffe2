"""The sweep: search, trials, shared start, retrains, report."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.tuning.sweep import Sweep as Sweep

__all__ = ["Sweep"]

__getattr__ = lazy(
    __name__,
    {
        "Sweep": "ltcore.tuning.sweep",
    },
)
