"""The configuration of runs and sweeps: schema, recipes, overrides, search space."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.config.load import load_run as load_run
    from ltcore.config.load import load_sweep as load_sweep
    from ltcore.config.optim import OptimConfig as OptimConfig
    from ltcore.config.schema import RunConfig as RunConfig
    from ltcore.config.schema import TrainConfig as TrainConfig
    from ltcore.config.sweep import SweepConfig as SweepConfig

__all__ = ["OptimConfig", "RunConfig", "SweepConfig", "TrainConfig", "load_run", "load_sweep"]

__getattr__ = lazy(
    __name__,
    {
        "OptimConfig": "ltcore.config.optim",
        "RunConfig": "ltcore.config.schema",
        "SweepConfig": "ltcore.config.sweep",
        "TrainConfig": "ltcore.config.schema",
        "load_run": "ltcore.config.load",
        "load_sweep": "ltcore.config.load",
    },
)
