"""Interface of stage 2 methods: classifiers on features that no longer change (decoupled training).

Stage 1 trains the whole network on the natural stream. Stage 2 freezes the backbone, with its batch-norm statistics,
and balances only the classifiers. A method changes the given classifiers in place, in rounds that the loop in
``ltcore.training.stage2.trainer`` counts as epochs and validates: ``Solved`` methods compute them in closed form,
``Trained`` methods use gradient descent.

Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020.
Differs: features are those of the training images without augmentation, computed once. The published codes augment in
stage 2 too, and some of them (GLT, BoT) leave batch norm in training mode, so that its statistics move to the balanced
stream.
Cost: memory N D values for the features; a step is three products of [B, D] and [D, C].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ltcore.errors import at_least, one_of, positive, within
from ltcore.objective.stage2.sampler import class_aware_rows
from ltcore.stats import ClassStats

SCHEDULES = ("cosine", "constant")
CHUNK = 4096
"""Rows of features that are processed at a time where all are needed."""


@dataclass(frozen=True)
class FeatureSet:
    """The pooled features of one split, without gradient; row i is sample i."""

    features_ND: Tensor
    """float32 or float16; features of several experts lie side by side, as in ``ModelOutput.features_BD``."""
    labels_N: Tensor
    """int64."""

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (float32 features, labels) of ``CHUNK`` consecutive rows at a time."""
        for features_BD, labels_B in zip(self.features_ND.split(CHUNK), self.labels_N.split(CHUNK), strict=True):
            yield features_BD.float(), labels_B


def expert_logits(heads: nn.ModuleList, features_BD: Tensor) -> Tensor:
    """Returns logits [B, E, C], those of every head on its own part of the features."""
    shares = features_BD.chunk(len(heads), 1)
    return torch.stack([head(share_BD) for head, share_BD in zip(heads, shares, strict=True)], 1)


def expert_cross_entropy(logits_BEC: Tensor, labels_B: Tensor) -> Tensor:
    """Returns the cross-entropy [B] summed over experts, each a separate classifier."""
    labels_BE = labels_B[:, None].expand(-1, logits_BEC.shape[1])
    return F.cross_entropy(logits_BEC.transpose(1, 2), labels_BE, reduction="none").sum(1)


class HeadMethod(nn.Module):
    """A method that balances classifiers. Subclasses declare a frozen ``Config``.

    Args:
        cfg: its options.
        heads: one classifier per expert, [B, D] -> [B, C], with the weights of stage 1, changed in place; new ones where
            ``result_head`` names another kind. Linear heads have ``weight`` [C, D] and ``bias`` [C], cosine heads only
            ``weight``.
        stats: class counts of the training split.
        seed: seed of the run, for all random numbers.
    """

    linear_only: ClassVar[str] = ""
    """Why the method makes no sense on a cosine head; '' where it does."""
    chooses: ClassVar[bool] = False
    """True: the rounds are candidates, and the best one on validation is the result. False: the last one is."""

    def __init__(self, cfg: Any, heads: nn.ModuleList, stats: ClassStats, seed: int) -> None:
        super().__init__()
        self.cfg, self.heads, self.stats, self.seed = cfg, heads, stats, seed

    @property
    def classifiers(self) -> list[Any]:
        """Returns the heads, one per expert."""
        return list(self.heads)

    @staticmethod
    def result_head(cfg: Any) -> str | None:
        """Returns the kind of classifier that the method produces ('linear', 'cosine'); None for that of stage 1."""
        return None

    @staticmethod
    def rounds(cfg: Any) -> int:
        """Returns how many times the classifiers are changed and validated."""
        raise NotImplementedError  # abstract


class Solved(HeadMethod):
    """Methods that compute the classifiers in closed form."""

    if_not_finite = "The features of the network of stage 1 are not to be used: train it anew"
    """What to do where the classifiers have values that are not finite."""

    def solve_(self, index: int, data: FeatureSet) -> dict[str, float]:
        """Sets the heads of round ``index`` and returns the values to log."""
        raise NotImplementedError  # abstract


@dataclass(frozen=True, kw_only=True)
class SgdConfig:
    """Options of every trained method: SGD with momentum on the cached features, without warm-up."""

    epochs: int = 10
    """Passes over the method's stream. Range >= 1."""
    batch_size: int = 128
    """Features per step. Range >= 1."""
    lr: float = 0.1
    """Initial learning rate. Range > 0."""
    momentum: float = 0.9
    """Momentum of SGD. Range [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty added to the gradient of all trained parameters. Range >= 0."""
    schedule: str = "cosine"
    """'cosine' (to 0, set per epoch) or 'constant'."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        positive(lr=self.lr)
        within("[0, 1)", momentum=self.momentum)
        at_least(0, weight_decay=self.weight_decay)
        one_of(SCHEDULES, schedule=self.schedule)


class Trained(HeadMethod):
    """Methods that train the classifiers by gradient descent; every parameter that requires a gradient is trained."""

    cfg: SgdConfig

    @staticmethod
    def rounds(cfg: SgdConfig) -> int:
        return cfg.epochs

    def rows(self, epoch: int, labels_N: Tensor) -> Tensor:
        """Returns int64 [L], the rows of the features in the order of this epoch.

        A pure function of its arguments. ``labels_N`` is on the CPU.
        """
        raise NotImplementedError  # abstract

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Returns the loss of a batch, a scalar with gradient."""
        raise NotImplementedError  # abstract

    def project_(self) -> None:
        """Projects the parameters onto the feasible set, after each optimizer step; by default there is no constraint."""

    def export_(self) -> None:
        """Writes learned parameters into the heads, after each epoch; needed where the heads do not hold them."""


@dataclass(frozen=True, kw_only=True)
class ClassAwareConfig(SgdConfig):
    """Options of methods that see every class equally often."""

    per_class: int = 4
    """Samples drawn in a row from one class before the next class. Range >= 1; GLT and DRO-LT: 4."""
    max_passes: float | None = None
    """Upper limit of the epoch length, as a multiple of the number of training images; GLT: 4. null: size of the
    largest class times number of classes, as published (CIFAR-100-LT at imbalance 100: 50,000 draws, 4.6 times its
    images). Range > 0.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, per_class=self.per_class)
        positive(max_passes=self.max_passes)


class ClassAware(Trained):
    """Cross-entropy on a stream with equally frequent classes, so that no prior correction is needed."""

    cfg: ClassAwareConfig

    def rows(self, epoch: int, labels_N: Tensor) -> Tensor:
        cfg = self.cfg
        return class_aware_rows(
            labels_N, seed=self.seed, epoch=epoch, per_class=cfg.per_class, max_passes=cfg.max_passes
        )

    def logits(self, features_BD: Tensor) -> Tensor:
        """Returns logits [B, E, C]."""
        return expert_logits(self.heads, features_BD)

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        return expert_cross_entropy(self.logits(features_BD), labels_B).mean()
