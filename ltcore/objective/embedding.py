"""Embeddings that contrastive losses compare: unit vectors of both views, in one of three spaces.

Shapes: B samples of this rank, d projection, D pooled features.
"""

from __future__ import annotations

from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.objective.dims import FeatureDims, widened

QUERY, OWN, POOLED = "query", "own", "pooled"
SECOND = "second"
"""The space of 'query' for losses that train on both views: its keys are queries of the second view, without gradient."""
EMBEDDINGS = (QUERY, OWN, POOLED)
"""'query' is the projection shared by all losses, 'own' a second projection for one term, 'pooled' the pooled features.
"""

NEEDS: dict[str, frozenset[str]] = {QUERY: frozenset({"query"}), OWN: frozenset({"own_query"}), POOLED: frozenset()}
"""Outputs that each space requires of the network besides 'key'."""


def query_of(out: ModelOutput, space: str) -> Tensor:
    """Returns the unit embeddings of view 1, with gradient.

    Their shape is [B, d], or [B, D] for pooled features; float32 at least.
    """
    if space == POOLED:
        return _unit(widened(out.features_BD))
    query_Bd = out.query_Bd if space == QUERY else out.own_query_Bd
    assert query_Bd is not None, f"a loss that uses the embedding {space!r} must list {set(NEEDS[space])} in its needs"
    return widened(query_Bd)


def key_of(out: ModelOutput, space: str) -> Tensor:
    """Returns the unit embeddings of the last view by the key encoder, without gradient.

    Their shape is that of ``query_of``.
    """
    if space == SECOND:
        return query_of(second_of(out), QUERY).detach()
    key_Bd = {QUERY: out.key_Bd, OWN: out.own_key_Bd, POOLED: out.key_features_BD}[space]
    assert key_Bd is not None, "a loss that uses keys must list 'key' in its needs"
    return _unit(widened(key_Bd)) if space == POOLED else widened(key_Bd)


def second_of(out: ModelOutput) -> ModelOutput:
    """Returns the output for the second view by the network itself."""
    assert out.second is not None, "a loss that trains on both views must list 'second' in its needs"
    return out.second


def length(dims: FeatureDims, space: str) -> int:
    """Returns the length of the vectors in a space."""
    return dims.features if space == POOLED else dims.projection


def _unit(vectors_BD: Tensor) -> Tensor:
    """Scales rows to unit length; a zero row stays zero, with a finite gradient."""
    return vectors_BD * (vectors_BD.square().sum(1, keepdim=True) + 1e-12).rsqrt()
