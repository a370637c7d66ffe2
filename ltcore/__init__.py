"""Train and tune long-tailed image classifiers on Ray: LPA, DRO-LT and IFL, exact, composable, on streamed shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltcore.version import __version__ as __version__

if TYPE_CHECKING:
    from ltcore.training.predict import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imports torch, which `import ltcore` alone does not need
        from ltcore.training.predict import load

        return load
    raise AttributeError(f"module 'ltcore' has no attribute {name!r}")
