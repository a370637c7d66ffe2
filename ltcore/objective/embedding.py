"""What contrastive losses compare: unit vectors of both views, in one of three spaces.

Shapes: B samples of this rank, d projection, D pooled features.
"""

from __future__ import annotations

from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.objective.dims import FeatureDims, widened

QUERY, OWN, POOLED = "query", "own", "pooled"
EMBEDDINGS = (QUERY, OWN, POOLED)
"""The projection that all losses share; a second one, for the term that asks for it; the pooled features themselves."""

NEEDS: dict[str, frozenset[str]] = {QUERY: frozenset({"query"}), OWN: frozenset({"own_query"}), POOLED: frozenset()}
"""What a space asks of the network besides 'key'."""


def query_of(out: ModelOutput, space: str) -> Tensor:
    """[B, d], or [B, D] of pooled features: unit rows of view 1, with gradient; float32 at least."""
    if space == POOLED:
        return _unit(widened(out.features_BD))
    query_Bd = out.query_Bd if space == QUERY else out.own_query_Bd
    assert query_Bd is not None, f"whoever contrasts needs {set(NEEDS[space])}"
    return widened(query_Bd)


def key_of(out: ModelOutput, space: str) -> Tensor:
    """The same of the last view by the key encoder, without gradient."""
    key_Bd = {QUERY: out.key_Bd, OWN: out.own_key_Bd, POOLED: out.key_features_BD}[space]
    assert key_Bd is not None, "whoever contrasts needs 'key'"
    return _unit(widened(key_Bd)) if space == POOLED else widened(key_Bd)


def length(dims: FeatureDims, space: str) -> int:
    """Of the vectors of a space."""
    return dims.features if space == POOLED else dims.projection


def _unit(vectors_BD: Tensor) -> Tensor:
    """A zero vector stays zero, with a finite gradient."""
    return vectors_BD * (vectors_BD.square().sum(1, keepdim=True) + 1e-12).rsqrt()
