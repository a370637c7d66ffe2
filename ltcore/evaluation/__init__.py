"""Confusion counts, metrics, protocols, and intervals of paired differences."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.evaluation.confusion import Confusion as Confusion
    from ltcore.evaluation.paired import PairedDifference as PairedDifference
    from ltcore.evaluation.paired import paired_difference as paired_difference
    from ltcore.evaluation.protocols import PROTOCOLS as PROTOCOLS
    from ltcore.evaluation.protocols import Protocol as Protocol

__all__ = ["PROTOCOLS", "Confusion", "PairedDifference", "Protocol", "paired_difference"]

__getattr__ = lazy(
    __name__,
    {
        "Confusion": "ltcore.evaluation.confusion",
        "PROTOCOLS": "ltcore.evaluation.protocols",
        "PairedDifference": "ltcore.evaluation.paired",
        "Protocol": "ltcore.evaluation.protocols",
        "paired_difference": "ltcore.evaluation.paired",
    },
)
