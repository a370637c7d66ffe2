"""Train and tune long-tailed image classifiers on Ray: LPA, DRO-LT and IFL, exact, composable, on streamed shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcore import errors, plugins
from ltcore.lazy import lazy
from ltcore.version import __version__

if TYPE_CHECKING:
    from ltcore.api.commands import evaluate as evaluate
    from ltcore.api.commands import evaluate_protocols as evaluate_protocols
    from ltcore.api.commands import open_run as open_run
    from ltcore.api.commands import open_sweep as open_sweep
    from ltcore.api.commands import retrieve as retrieve
    from ltcore.api.commands import train as train
    from ltcore.api.commands import tune as tune
    from ltcore.batch import Batch as Batch
    from ltcore.batch import ModelOutput as ModelOutput
    from ltcore.callbacks import Callback as Callback
    from ltcore.callbacks import CallbackContext as CallbackContext
    from ltcore.data.augment.transforms import Draw as Draw
    from ltcore.data.datasets.dataset import Dataset as Dataset
    from ltcore.data.loading.class_sampling import EpochSamples as EpochSamples
    from ltcore.evaluation.plugged import Counted as Counted
    from ltcore.evaluation.plugged import Metric as Metric
    from ltcore.models.backbones import Backbone as Backbone
    from ltcore.objective.criterion import Criterion as Criterion
    from ltcore.objective.interface import Base as Base
    from ltcore.objective.interface import LossContext as LossContext
    from ltcore.objective.interface import Term as Term
    from ltcore.objective.interface import TermConfig as TermConfig
    from ltcore.objective.objective import make_objective as make_objective
    from ltcore.training.predict import load as load

__all__ = [
    "Backbone",
    "Base",
    "Batch",
    "Callback",
    "CallbackContext",
    "Counted",
    "Criterion",
    "Dataset",
    "Draw",
    "EpochSamples",
    "LossContext",
    "Metric",
    "ModelOutput",
    "Term",
    "TermConfig",
    "__version__",
    "errors",
    "evaluate",
    "evaluate_protocols",
    "load",
    "make_objective",
    "open_run",
    "open_sweep",
    "plugins",
    "retrieve",
    "train",
    "tune",
]

__getattr__ = lazy(
    __name__,
    {
        "Backbone": "ltcore.models.backbones",
        "Base": "ltcore.objective.interface",
        "Batch": "ltcore.batch",
        "Callback": "ltcore.callbacks",
        "CallbackContext": "ltcore.callbacks",
        "Counted": "ltcore.evaluation.plugged",
        "Criterion": "ltcore.objective.criterion",
        "Dataset": "ltcore.data.datasets.dataset",
        "Draw": "ltcore.data.augment.transforms",
        "EpochSamples": "ltcore.data.loading.class_sampling",
        "LossContext": "ltcore.objective.interface",
        "Metric": "ltcore.evaluation.plugged",
        "Term": "ltcore.objective.interface",
        "TermConfig": "ltcore.objective.interface",
        "ModelOutput": "ltcore.batch",
        "evaluate": "ltcore.api.commands",
        "evaluate_protocols": "ltcore.api.commands",
        "load": "ltcore.training.predict",
        "open_run": "ltcore.api.commands",
        "open_sweep": "ltcore.api.commands",
        "retrieve": "ltcore.api.commands",
        "train": "ltcore.api.commands",
        "tune": "ltcore.api.commands",
        "make_objective": "ltcore.objective.objective",
    },
)
