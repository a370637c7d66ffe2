"""Class weights (by the effective number of samples, inverse frequency, or a table) and the normalization of a weighted loss.

Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019; the deferred schedule (DRW)
is that of Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltcore import dist
from ltcore.errors import ConfigError, nearest, one_of, within
from ltcore.objective.dims import FeatureDims
from ltcore.objective.interface import Base, LossContext
from ltcore.stats import ClassStats
from ltcore.text import printable

WEIGHT_NORMS = ("batch", "batch_sum")
AUTO = "auto"
NATURAL = "natural"
"""Weights that undo a class-balanced stream."""
BY_COUNT = (AUTO, NATURAL)
"""Weights that follow from the class counts alone."""
Table = Mapping[str, float] | Sequence[float]
"""Weights by the name of the class, or of all classes in order."""


def effective_weights(counts_C: Tensor, beta: float) -> Tensor:
    """Returns float64 [C] weights (1 - beta) / (1 - beta^n_c), scaled to sum to C.

    beta = 0 gives all ones, beta -> 1 the inverse counts.
    """
    if beta == 0:
        return torch.ones_like(counts_C, dtype=torch.float64)
    # -expm1(n log beta) is 1 - beta^n without cancellation for beta near 1.
    weights_C = -1 / torch.expm1(counts_C.double().clamp_min(1) * math.log(beta))
    return weights_C * len(weights_C) / weights_C.sum()


def inverse_weights(counts_C: Tensor) -> Tensor:
    """Returns float64 [C] weights in proportion to 1 / n_c, scaled to sum to C."""
    weights_C = 1 / counts_C.double().clamp_min(1)
    return weights_C * len(weights_C) / weights_C.sum()


def natural_weights(counts_C: Tensor) -> Tensor:
    """Returns float64 [C] weights in proportion to n_c, scaled to sum to C."""
    weights_C = counts_C.double()
    return weights_C * len(weights_C) / weights_C.sum()


class ClassWeights(nn.Module):
    """Weights that balance the classes, corrected for the stream that the model sees.

    Where sampling or IFL's environments change the class shares from pi to s, the weight is w_c pi_c / s_c: each class
    then contributes as much to the loss as in the natural stream, instead of being balanced twice. With
    ``objective.prior: dataset`` w_c is not corrected, as in GLT's code.
    """

    def __init__(self, weights_C: Tensor, stats: ClassStats) -> None:
        super().__init__()
        self.weights_C: Tensor
        self.log_share_C: Tensor
        self.register_buffer("weights_C", weights_C, persistent=False)
        self.register_buffer("log_share_C", stats.log_prior_C("dataset", torch.float64), persistent=False)

    def forward(self, log_prior_C: Tensor) -> Tensor:
        """Returns the weights [C] for a stream with log class shares ``log_prior_C`` [C], in its type."""
        return self.weights_C.to(log_prior_C.dtype) * (self.log_share_C.to(log_prior_C.dtype) - log_prior_C).exp()


class EffectiveWeights(ClassWeights):
    """Class weights of ``effective_weights``; with ``beta`` 0 there is nothing to correct, and all stay 1."""

    def __init__(self, stats: ClassStats, beta: float) -> None:
        super().__init__(effective_weights(stats.counts_C, beta), stats)
        self.beta = beta

    def forward(self, log_prior_C: Tensor) -> Tensor:
        if self.beta == 0:
            return self.weights_C.to(log_prior_C.dtype)
        return super().forward(log_prior_C)


class FixedWeights(ClassWeights):
    """Weights that are not corrected for any stream: those that somebody chose, or that undo a certain one."""

    def forward(self, log_prior_C: Tensor) -> Tensor:
        return self.weights_C.to(log_prior_C.dtype)


@dataclass(frozen=True, kw_only=True)
class WeightedConfig:
    """Options of losses that take class weights."""

    class_weights: str | dict[str, float] | None = None
    """Factor on the loss of each class. null: 1 for all. 'auto': in proportion to 1 / n_c with mean 1 over the classes, and
    less as sampling or environments show a class more often, so that it is balanced once. 'natural': in proportion to n_c, so
    that a class-balanced stream counts as the natural one (DRO-LT's code, beside its loss of features; only with a
    ``train.sampling`` that balances). Or your own, taken as they are: a table such as {cat: 2.0}, where classes without an
    entry weigh 1, or a list such as [1.0, 2.5] in the order of the classes.
    Weights by effective number are ``objective.base=class_balanced``."""
    weight_norm: str = "batch"
    """Divide by 'batch' (the number of samples) or 'batch_sum' (the sum of their weights, as ``torch.nn.CrossEntropyLoss``
    does). No effect without ``class_weights``."""

    def __post_init__(self) -> None:
        one_of(WEIGHT_NORMS, weight_norm=self.weight_norm)
        if self.class_weights not in (None, *BY_COUNT):
            weight_table(self.class_weights)


class WeightedBase(Base):
    """A base whose loss per sample is multiplied by the weight of its class."""

    def __init__(self, cfg: WeightedConfig, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__(cfg, stats, dims)
        self.class_weights: ClassWeights | None = None
        if cfg.class_weights == AUTO:
            self.class_weights = ClassWeights(inverse_weights(stats.counts_C), stats)
        elif cfg.class_weights == NATURAL:
            self.class_weights = FixedWeights(natural_weights(stats.counts_C), stats)
        elif cfg.class_weights is not None:
            self.class_weights = FixedWeights(own_weights(cfg.class_weights, stats), stats)

    @staticmethod
    def gathers(cfg: WeightedConfig) -> bool:
        """Tells whether the normalizing sum of weights is taken over the global batch."""
        return cfg.class_weights is not None and cfg.weight_norm == "batch_sum"

    @staticmethod
    def balances(cfg: WeightedConfig) -> str:
        if cfg.class_weights in (None, NATURAL):
            return ""
        return (
            f"weighs the classes by {'inverse frequency' if cfg.class_weights == AUTO else 'a table'} (class_weights)"
        )

    def learned_shares_C(self, shares_C: Tensor) -> Tensor:
        if self.class_weights is None or self.cfg.class_weights != NATURAL:
            return shares_C
        weighed_C = shares_C * self.class_weights.weights_C.to(shares_C)
        return weighed_C / weighed_C.sum()

    def weigh(self, loss_B: Tensor, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Multiplies losses [B] by the weights of their classes; returns them as they are where there are none."""
        if self.class_weights is None:
            return loss_B
        return weighted(loss_B, self.class_weights(ctx.log_prior_C)[labels_B], self.cfg.weight_norm)


def weight_table(value: Any) -> Table:
    """Returns the table in an option: a mapping or list, or one as JSON text, which configurations store.

    Raises ValueError that starts with ``class_weights`` where it is none, or a weight is not a finite number >= 0.
    """
    table = value
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            table = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"class_weights is no table, got {value!r:.80} ({error})") from None
    if isinstance(table, Mapping):
        return dict(zip(map(str, table), _numbers(table.values()), strict=True))
    if isinstance(table, Sequence) and not isinstance(table, str):
        return _numbers(table)
    hint = ": weights by effective number are objective.base=class_balanced" if value == "effective_number" else ""
    raise ValueError(
        f"class_weights must be null, {AUTO}, {NATURAL}, a table such as {{cat: 2.0}} or a list with one weight per class, got "
        f"{value!r:.80}{hint}"
    )


def _numbers(values: Iterable[Any]) -> list[float]:
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except (TypeError, ValueError, OverflowError):
            numbers.append(math.nan)
        if isinstance(value, bool) or not 0 <= numbers[-1] < math.inf:
            raise ValueError(f"class_weights must be finite numbers >= 0, got {value!r:.80}")
    if not any(numbers):
        raise ValueError("class_weights must have a weight above 0")
    return numbers


def own_weights(value: Any, stats: ClassStats) -> Tensor:
    """Returns float64 [C], the weights of a table for these classes.

    Raises ConfigError for a name that is none of them, and for a list of another length.
    """
    table = weight_table(value)
    if isinstance(table, Mapping):
        if not stats.class_names:
            raise ConfigError("class_weights: the classes have no names here. Give a list with one weight per class.")
        known = set(stats.class_names)
        for name in table:
            if name not in known:
                some = ", ".join(map(printable, stats.class_names[:5])) + (", ..." if stats.num_classes > 5 else "")
                raise ConfigError(
                    f"class_weights: no class is named {printable(name)!r:.80}.{nearest(name, stats.class_names)} There are "
                    f"{stats.num_classes} classes ({some}); those without an entry weigh 1."
                )
        return torch.tensor([table.get(name, 1.0) for name in stats.class_names], dtype=torch.float64)
    if len(table) != stats.num_classes:
        raise ConfigError(
            f"class_weights is a list of {len(table)} weights for {stats.num_classes} classes. Give each class one, or a table "
            "with their names."
        )
    return torch.tensor(table, dtype=torch.float64)


def weighted(loss_B: Tensor, weights_B: Tensor, norm: str) -> Tensor:
    """Multiplies the losses [B] by their weights, normalized by ``norm``.

    The mean of the result over the global batch is the weighted loss. ``norm='batch'`` divides by the number of
    samples. ``'batch_sum'`` divides by the sum of the weights in the global batch, as
    ``torch.nn.CrossEntropyLoss(weight)`` and the authors' codes do: the step then depends on which samples share the
    batch. Weights that IFL applies afterwards are not part of that sum.
    """
    weights_B = weights_B.to(loss_B.dtype)
    if norm == "batch_sum":
        total = dist.all_reduce_sum_(weights_B.sum())
        # a batch of classes that do not count has no loss
        weights_B = weights_B * len(weights_B) * dist.world() / torch.where(total > 0, total, 1)
    return loss_B * weights_B


def check_options(beta: float, weight_norm: str) -> None:
    """Raises ValueError that starts with the name of the wrong option."""
    within("[0, 1)", beta=beta)
    one_of(WEIGHT_NORMS, weight_norm=weight_norm)
