"""Training, tuning and evaluation as functions: what the commands do, returned as objects."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.api.commands import evaluate as evaluate
    from ltcore.api.commands import evaluate_protocols as evaluate_protocols
    from ltcore.api.commands import open_run as open_run
    from ltcore.api.commands import open_sweep as open_sweep
    from ltcore.api.commands import retrieve as retrieve
    from ltcore.api.commands import train as train
    from ltcore.api.commands import tune as tune
    from ltcore.api.results import Evaluation as Evaluation
    from ltcore.api.results import Protocols as Protocols
    from ltcore.api.results import Run as Run
    from ltcore.api.results import Sweep as Sweep

__all__ = [
    "Evaluation",
    "Protocols",
    "Run",
    "Sweep",
    "evaluate",
    "evaluate_protocols",
    "open_run",
    "open_sweep",
    "retrieve",
    "train",
    "tune",
]

__getattr__ = lazy(
    __name__,
    {
        "Evaluation": "ltcore.api.results",
        "Protocols": "ltcore.api.results",
        "Run": "ltcore.api.results",
        "Sweep": "ltcore.api.results",
        "evaluate": "ltcore.api.commands",
        "evaluate_protocols": "ltcore.api.commands",
        "open_run": "ltcore.api.commands",
        "open_sweep": "ltcore.api.commands",
        "retrieve": "ltcore.api.commands",
        "train": "ltcore.api.commands",
        "tune": "ltcore.api.commands",
    },
)
