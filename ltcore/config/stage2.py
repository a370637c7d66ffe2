"""The ``stage2`` section of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ltcore.errors import one_of
from ltcore.models.heads import HEADS
from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import BASES, STAGE2, Row, Stage2Options
from ltcore.uris import check_uris

FEATURE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Stage2Config:
    """A new classifier on the frozen features of a finished run."""

    from_run: str = ""
    """Run or checkpoint directory of stage 1, path or URI; of a run its best checkpoint, as ``evaluate.py`` takes it.
    What the run was (data, augment, model, objective, train) is taken from there and need not be repeated. Of this run
    itself are data.loader, resident, cache_bytes, max_bad_samples and prefetch_steps, and train.precision, threads,
    eval_batch_size and select."""
    method: str = "crt"
    """What is done to the classifier (``ltcore methods``)."""
    options: Stage2Options = field(default_factory=Stage2Options)
    """Options of each method; those of a method that is not chosen have no effect and must be left at their defaults."""
    feature_dtype: str = "float32"
    """How the features of all training images are kept in memory: 'float32' (4 N D bytes, 0.9 GB for ImageNet-LT with
    2048 features) or 'float16' (half of it, rounded to 11 bits)."""

    def __post_init__(self) -> None:
        check_uris(from_run=self.from_run)
        one_of(sorted(STAGE2), method=self.method)
        one_of(FEATURE_DTYPES, feature_dtype=self.feature_dtype)
        for name, row in STAGE2.items():
            if name != self.method and getattr(self.options, name) != row.build.Config():
                raise ValueError(
                    f"options.{name} has no effect with method={self.method!r}: remove it or set stage2.method={name}"
                )

    @property
    def row(self) -> Row:
        """Returns the registry row of the chosen method."""
        return STAGE2[self.method]

    @property
    def chosen(self) -> Any:
        """Returns the options of the chosen method."""
        return getattr(self.options, self.method)

    @property
    def rounds(self) -> int:
        """Returns the number of epochs, or of candidates."""
        return int(self.row.build.rounds(self.chosen))

    def refusal(self, objective: ObjectiveConfig, head: str) -> str:
        """Returns why stage 2 makes no sense after this stage 1; '' where it does.

        ``head`` is the kind of stage 1's classifier.
        """
        base = objective.base
        balances = BASES[base].build.balances(getattr(objective.base_options, base))
        if balances:
            return (
                f"stage2 does not go with objective.base={base}, which {balances}: the classes would be balanced twice, and "
                "that costs accuracy (ImageNet-LT: balanced softmax 51.2, with cRT on top 50.6; Zhang et al., TPAMI 2023). "
                "Use that run as it is, or start from one with objective.base=cross_entropy and no class_weights"
            )
        keeps_head = self.row.build.result_head(self.chosen) is None
        if keeps_head and (what := HEADS[head].in_training):
            return (
                f"stage2.method={self.method} does not go with model.head={head}, which {what}: stage 2 would train on "
                "the logits of evaluation. Choose stage2.method=ncm, or start from a run with model.head=linear"
            )
        why = self.row.build.linear_only
        if why and head != "linear":
            return f"stage2.method={self.method} does not go with model.head={head}, {why}. Choose stage2.method=crt, dro or ncm"
        return ""
