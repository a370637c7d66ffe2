"""What every part promises, from losses and networks to augmentations and metrics, as checks that anyone can run.

``ltcore check my_package`` runs them on the parts of a plugin; the tests run them on every row of the registries.
"""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.contracts.check import Outcome as Outcome
    from ltcore.contracts.check import check_plugin as check_plugin

__all__ = ["Outcome", "check_plugin"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "ltcore.contracts.check"))
