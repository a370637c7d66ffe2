"""The contract of the two kinds of loss: a base returns one number per sample, a term returns one penalty.

Both are pure: they read published memories and write nothing, so calling one twice gives the same number. What is
remembered across steps lives in a memory (``objective/memory``): a loss *declares* what it needs and never updates it.

Values follow the convention of ``ltcore.dist``: the mean over ranks of what the ranks return is the loss of the global
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

NEEDS = frozenset({"fmap", "query", "own_query", "key"})
"""What a loss may ask of the network: the feature map, the query projection, a second projection for itself, an EMA key
encoder (of the second view, where there is one). Besides these, the name of an earlier stage ('stage1', ...) asks for its
pooled features, and 'fmap/' before it ('fmap/stage1') for its map.
"""


@dataclass
class LossContext:
    """What a loss may look at besides the current output. One object per forward."""

    stats: ClassStats
    log_prior_C: Tensor
    """[C] log prior chosen by ``objective.prior``: float32, or float64 where the logits are."""
    progress: float
    """Fraction of training done, in [0, 1]: images seen over images in total."""
    memories: Mapping[str, Memory]
    """The memories this loss declared, under the names it gave them."""
    shared: dict[Any, Any] = field(default_factory=dict)
    """Results that several losses of one forward use (the similarity matrix of PaCo and LPA)."""
    logged: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars to log beside the loss, by a name of its own for each. As for the loss, the mean over ranks is global."""

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """``compute()``, at most once per forward for each ``key``."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]


class Base(nn.Module):
    """A classification loss. Subclasses declare a frozen ``Config`` dataclass and take ``(cfg, stats, dims)``."""

    needs: ClassVar[frozenset[str]] = frozenset()
    expert_head: ClassVar[bool] = False
    """True: the loss expects logits [B, E, C]."""
    label_mix: ClassVar[bool] = True
    """True: the loss is a function of (logits, label) alone, so mixup may combine two labels."""
    contrasts: ClassVar[bool] = False
    """True: the other samples are its negatives, and it leaves out those that a term spares."""
    learns_centers: ClassVar[bool] = False
    """True: the classifier's rows are centers that the loss itself must move."""
    text_order_in_glt: ClassVar[bool] = False
    """True: GLT's code has this loss, with class counts in the order of text (``objective.prior``)."""

    def __init__(self, cfg: Any, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__()
        self.cfg = cfg

    @staticmethod
    def cosine_scale(cfg: Any) -> float | None:
        """Scale of the cosine head without which this configuration makes no sense; None: any head will do."""
        return None

    @staticmethod
    def views(cfg: Any) -> int:
        """Views of each image that it looks at, 1 or 2; the key encoder sees the last one."""
        return 1

    @staticmethod
    def gathers(cfg: Any) -> bool:
        """True where the loss looks across the global batch, so that gradient accumulation would change its value."""
        return False

    @staticmethod
    def balances(cfg: Any) -> str:
        """How this configuration makes up for the class frequencies already, as the end of 'which ...'; '' where it does
        not, and stage 2 or post-hoc logit adjustment may."""
        return ""

    def memories(self) -> dict[str, MemorySpec]:
        """Name, as this loss will find it in the context -> what it remembers across steps."""
        return {}

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """float32 [B], one loss per sample, never reduced."""
        raise NotImplementedError  # abstract


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Fields that every term has."""

    weight: float = 1.0
    """Factor of the penalty in the objective. 0 is not 'off' for a term that also re-weights samples; null is."""
    start: float = 0.0
    """Fraction of training before which the term contributes nothing. Range [0, 1)."""

    def __post_init__(self) -> None:
        at_least(0, weight=self.weight)
        within("[0, 1)", "a fraction of training", start=self.start)


class Term(nn.Module):
    """One additive piece of the objective. Subclasses declare a frozen ``Config(TermConfig)``."""

    needs: frozenset[str] = frozenset()

    def __init__(self, cfg: Any, stats: ClassStats, dims: FeatureDims) -> None:
        super().__init__()
        self.cfg = cfg

    @staticmethod
    def views(cfg: Any) -> int:
        """As for a base."""
        return 1

    @staticmethod
    def is_off(cfg: Any) -> bool:
        """True where this configuration contributes nothing ever: the term is then not built at all."""
        return bool(cfg.weight == 0)

    @staticmethod
    def gathers(cfg: Any) -> bool:
        """As for a base."""
        return False

    @staticmethod
    def mix_refusal(cfg: Any) -> str:
        """Why this configuration makes no sense with images mixed of two; '' where it does."""
        return "a mixed image has no single class for it"

    def memories(self) -> dict[str, MemorySpec]:
        """As for a base."""
        return {}

    def sample_weights(self, batch: Batch, ctx: LossContext) -> Tensor | None:
        """float32 [B], multiplied into the base loss; None: all ones. The mean over the training split (of mixed images,
        over all pairs of its samples) is 1.
        """
        return None

    def draws(self, memories: Mapping[str, Memory], labels_N: Tensor) -> Tensor | None:
        """[N] how often each training sample should come in the next epoch, mean 1; None: once. ``labels_N`` are their
        classes. For terms that show samples more or less often instead of weighing them."""
        return None

    def before_base(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> None:
        """Leaves in ``ctx.shared`` what the base should know before it is computed; nothing in most terms."""

    def class_shares(self, memories: Mapping[str, Memory]) -> Tensor | None:
        """[C] share of each class under ``sample_weights`` or ``draws`` (sums to 1); None where they leave it alone."""
        return None

    def forward(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        """float32 scalar penalty, before ``weight``."""
        raise NotImplementedError  # abstract
