"""Interfaces of the two kinds of loss: a base returns one number per sample, a term returns one penalty.

Both are pure: they read published memories and write nothing, so calling one twice gives the same number. State that
lasts across steps lives in a memory (``objective/memory``): a loss *declares* the memories it needs and never updates
them.

Values follow the convention of ``ltcore.dist``: the mean over ranks of the returned values is the loss of the global
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ltcore.batch import Batch, ModelOutput
from ltcore.errors import at_least, within
from ltcore.objective.dims import FeatureDims
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.stats import ClassStats

NEEDS = frozenset({"fmap", "query", "own_query", "key", "twin", "second"})
"""Network outputs that a loss may require: the feature map, the query projection, a second projection for its own use,
an EMA key encoder (applied to the second view, where there is one), the logits of a second network that is trained beside
the first, the output of the network itself for the second view. Besides these, the name of an earlier stage
('stage1', ...) requires its pooled features, and the name after 'fmap/' ('fmap/stage1') its feature map.
"""


@dataclass
class Shared:
    """What the losses of one forward hand to each other."""

    results: dict[Any, Any] = field(default_factory=dict)
    """What several losses use, such as the similarity matrix of PaCo and LPA."""
    spared: Callable[[Tensor], Tensor] | None = None
    """Maps the labels [A] of a contrast set to bool [B, A]: the elements that a contrastive base must not use as negatives of
    an anchor. A term may set it.
    """


@dataclass
class LossContext:
    """Inputs of a loss besides the current output. One object per loss and forward."""

    stats: ClassStats
    log_prior_C: Tensor
    """[C] log prior chosen by ``objective.prior``: float32, or float64 where the logits are."""
    progress: float
    """Fraction of training done, in [0, 1]: images seen over images in total."""
    memories: Mapping[str, Memory]
    """The memories that this loss declared, under its own names for them."""
    shared: Shared = field(default_factory=Shared)
    """The same object for all losses of one forward."""
    logged: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars to log beside the loss, each under its own name. The mean over ranks is the global value, as for
    the loss.
    """

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Returns the result of ``compute``, which is called at most once per forward for each ``key``."""
        results = self.shared.results
        if key not in results:
            results[key] = compute()
        return results[key]


class Base(nn.Module):
    """A classification loss. Subclasses declare a frozen ``Config`` dataclass and take ``(cfg, stats, dims)``."""

    needs: ClassVar[frozenset[str]] = frozenset()
    expert_head: ClassVar[bool] = False
    """True: the loss expects logits [B, E, C] of several experts."""
    label_mix: ClassVar[bool] = True
    """True: the loss depends only on (logits, label), so mixup may combine two labels."""
    contrasts: ClassVar[bool] = False
    """True: the other samples are its negatives, except those in ``Shared.spared``."""
    learns_centers: ClassVar[bool] = False
    """True: the classifier's rows are class centers that this loss itself has to train."""
    pairs: ClassVar[bool] = False
    """True: the loss takes pairs of images, each of a stream of its own, whose features a bilateral network mixes."""
    text_order_in_glt: ClassVar[bool] = False
    """True: GLT's code has this loss, with class counts in text order (``objective.prior``)."""

    def __init__(self, cfg: Any, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__()
        self.cfg = cfg

    @staticmethod
    def cosine_scale(cfg: Any) -> float | None:
        """Returns the scale that this configuration requires of a cosine head; None where any head works."""
        return None

    @staticmethod
    def pair_share(progress: float) -> float:
        """Returns the share of the first image of each pair, in features and label, at this fraction of training."""
        raise NotImplementedError  # of bases with pairs alone

    @staticmethod
    def views(cfg: Any) -> int:
        """Returns how many views of each image the loss uses, 1 or 2. The key encoder sees the last one."""
        return 1

    @staticmethod
    def gathers(cfg: Any) -> bool:
        """Tells whether the loss depends on the whole global batch.

        Gradient accumulation would then change its value.
        """
        return False

    @staticmethod
    def balances(cfg: Any) -> str:
        """Returns how this configuration already compensates for class frequencies, as the end of 'which ...'.

        Empty where it does not; only then may stage 2 or post-hoc logit adjustment balance the classes.
        """
        return ""

    def learned_shares_C(self, shares_C: Tensor) -> Tensor:
        """Returns the class shares [C] that a classifier learns of a stream with ``shares_C``: others where classes weigh."""
        return shares_C

    def memories(self) -> dict[str, MemorySpec]:
        """Returns the memories that the loss needs, by the names under which the context provides them."""
        return {}

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss of each sample, float32 [B], without reduction."""
        raise NotImplementedError  # abstract


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Fields that every term has."""

    weight: float = 1.0
    """Factor of the penalty in the objective. Set the term to null to switch it off: a term that re-weights samples
    still does so with weight 0.
    """
    start: float = 0.0
    """Fraction of training before which the term contributes nothing. Range [0, 1)."""

    def __post_init__(self) -> None:
        at_least(0, weight=self.weight)
        within("[0, 1)", "a fraction of training", start=self.start)


class Term(nn.Module):
    """An additive part of the objective. Subclasses declare a frozen ``Config(TermConfig)``."""

    needs: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    """Of what every network and loader of ours provide, and others may not: 'features', the pooled features of view 1, and
    'index', the number of each sample. Asked by ``Criterion`` alone.
    """

    def __init__(self, cfg: Any, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__()
        self.cfg = cfg

    @staticmethod
    def views(cfg: Any) -> int:
        """Returns how many views of each image the term uses, 1 or 2."""
        return 1

    @staticmethod
    def is_off(cfg: Any) -> bool:
        """Tells whether this configuration never contributes anything; the term is then not built at all."""
        return bool(cfg.weight == 0)

    @staticmethod
    def gathers(cfg: Any) -> bool:
        """Tells whether the term depends on the whole global batch.

        Gradient accumulation would then change its value.
        """
        return False

    @staticmethod
    def mix_refusal(cfg: Any) -> str:
        """Returns why the term is undefined for images mixed of two; '' where it is defined."""
        return "a mixed image has no single class for it"

    @staticmethod
    def sampling_refusal(cfg: Any) -> str:
        """Returns why the term needs every image once per epoch (``train.sampling``); '' where any stream will do."""
        return ""

    def memories(self) -> dict[str, MemorySpec]:
        """Returns the memories that the term needs, by the names under which the context provides them."""
        return {}

    def sample_weights(self, batch: Batch, ctx: LossContext) -> Tensor | None:
        """Returns float32 [B] factors of the base loss; None for all ones.

        Their mean over the training split (for mixed images, over all pairs of its samples) is 1.
        """
        return None

    def draws(self, memories: Mapping[str, Memory], labels_N: Tensor) -> Tensor | None:
        """Returns [N] how often each training sample should come in the next epoch; None for once each.

        The mean is 1. For terms that repeat or leave out samples instead of weighting them. ``labels_N`` are the
        classes of the samples.
        """
        return None

    def before_base(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> None:
        """Stores in ``ctx.shared`` what the base needs before it is computed; most terms store nothing."""

    def class_shares(self, memories: Mapping[str, Memory]) -> Tensor | None:
        """Returns the share [C] of each class under ``sample_weights`` or ``draws``, with sum 1.

        None where the term does not change the shares.
        """
        return None

    def findings(self, memories: Mapping[str, Memory], labels_N: Tensor, attributes_N: Tensor) -> dict[str, float]:
        """Returns what the published memories have found of the attributes of the training samples, by name.

        For measurement only: losses never see attributes. ``labels_N`` and ``attributes_N`` are of all samples of the split;
        an unknown attribute is -1.
        """
        return {}

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """Returns the penalty, a float32 scalar, before it is multiplied by ``weight``."""
        raise NotImplementedError  # abstract
