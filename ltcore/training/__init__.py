"""One run: the loop, checkpoints, resume, evaluation, prediction. Knows no Ray."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.training.checkpoint import Checkpoint as Checkpoint
    from ltcore.training.context import LocalContext as LocalContext
    from ltcore.training.context import RunContext as RunContext
    from ltcore.training.predict import load as load
    from ltcore.training.predictor import Predictor as Predictor
    from ltcore.training.run import Job as Job
    from ltcore.training.run import execute as execute

__all__ = ["Checkpoint", "Job", "LocalContext", "Predictor", "RunContext", "execute", "load"]

__getattr__ = lazy(
    __name__,
    {
        "Checkpoint": "ltcore.training.checkpoint",
        "Job": "ltcore.training.run",
        "LocalContext": "ltcore.training.context",
        "Predictor": "ltcore.training.predictor",
        "RunContext": "ltcore.training.context",
        "execute": "ltcore.training.run",
        "load": "ltcore.training.predict",
    },
)
