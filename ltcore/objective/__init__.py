"""Losses, terms and their memories: what a network is trained to do. Knows nothing of training runs."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.objective.criterion import Criterion as Criterion
    from ltcore.objective.interface import Base as Base
    from ltcore.objective.interface import LossContext as LossContext
    from ltcore.objective.interface import Term as Term
    from ltcore.objective.interface import TermConfig as TermConfig
    from ltcore.objective.objective import Objective as Objective
    from ltcore.objective.objective import ObjectiveConfig as ObjectiveConfig
    from ltcore.objective.objective import ObjectiveOutput as ObjectiveOutput
    from ltcore.objective.objective import make_objective as make_objective
    from ltcore.objective.registry import BASES as BASES
    from ltcore.objective.registry import STAGE2 as STAGE2
    from ltcore.objective.registry import TERMS as TERMS

__all__ = [
    "BASES",
    "STAGE2",
    "TERMS",
    "Base",
    "Criterion",
    "LossContext",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "Term",
    "TermConfig",
    "make_objective",
]

__getattr__ = lazy(
    __name__,
    {
        "BASES": "ltcore.objective.registry",
        "Base": "ltcore.objective.interface",
        "Criterion": "ltcore.objective.criterion",
        "LossContext": "ltcore.objective.interface",
        "Objective": "ltcore.objective.objective",
        "ObjectiveConfig": "ltcore.objective.objective",
        "ObjectiveOutput": "ltcore.objective.objective",
        "STAGE2": "ltcore.objective.registry",
        "TERMS": "ltcore.objective.registry",
        "Term": "ltcore.objective.interface",
        "TermConfig": "ltcore.objective.interface",
        "make_objective": "ltcore.objective.objective",
    },
)
