"""Train and tune long-tailed image classifiers on Ray: LPA, DRO-LT and IFL, exact, composable, on streamed shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcore.lazy import lazy
from ltcore.version import __version__

if TYPE_CHECKING:
    from ltcore.batch import Batch as Batch
    from ltcore.batch import ModelOutput as ModelOutput
    from ltcore.objective.objective import make_objective as make_objective
    from ltcore.training.predict import load as load

__all__ = ["Batch", "ModelOutput", "__version__", "load", "make_objective"]

__getattr__ = lazy(
    __name__,
    {
        "Batch": "ltcore.batch",
        "ModelOutput": "ltcore.batch",
        "load": "ltcore.training.predict",
        "make_objective": "ltcore.objective.objective",
    },
)
