"""Scores of how well each training sample is predicted, and the environment weights that follow from them.

Source: Tang et al., "Invariant feature learning for generalized long-tailed classification", ECCV 2022: a sample's
score is the softmax probability of its own class (raw logits, no prior), taken from the training forward.
Differs: the score is the mean over the observations of the epoch instead of the last one, and one number is kept per
sample, by its index, instead of the logits of the whole epoch. A sample that the epoch did not show
(``env_mode='repeat'`` leaves some out, mostly well predicted ones) keeps its score of the previous milestone.
Environments: see ``ltcore.objective.terms.ifl.environments``.
Cost: O(B) per step; E x N float32 for the weights, 17 N bytes of scores and 24 N of sums; four all-reduces of N numbers
at each milestone, none at other epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, ModelOutput
from ltcore.objective.dims import FeatureDims, widened
from ltcore.objective.memory.base import Memory, MemorySpec
from ltcore.objective.terms.ifl.environments import class_totals, environment_weights
from ltcore.stats import ClassStats


class ScoreTable(Memory):
    """Environment weights per sample, rebuilt from the scores of the epoch in which training passes a milestone."""

    @dataclass(frozen=True)
    class Spec(MemorySpec):
        """The parameters of the environments; the fields are those of ``Ifl.Config``."""

        env_type: str
        num_envs: int
        tail_ratio: float
        env_scaling: str
        milestones: tuple[float, ...]
        """Fractions of training, increasing. The weights are rebuilt at the first merge at or after each."""

        def build(self, stats: ClassStats, dims: FeatureDims, seed: int) -> ScoreTable:
            """Returns a table with weight 1 for all N samples, which holds until the first milestone."""
            return ScoreTable(self, stats.counts_C, dims.num_samples)

    def __init__(self, spec: Spec, counts_C: Tensor, num_samples: int) -> None:
        self.spec = spec
        self._counts_C = counts_C
        self.relative_EN = torch.ones(spec.num_envs, num_samples)
        """float32: weight of a sample relative to its class; 1 where the sample was never scored."""
        self.factor_EC = torch.ones(spec.num_envs, len(counts_C))
        """float32: weight of a class. Sample i of class c weighs ``relative_EN[:, i] * factor_EC[:, c]``."""
        self.mean_weight_C = torch.ones(len(counts_C), dtype=torch.float64)
        """float64: mean over environments and over the samples of a class; 1 for a class without any."""
        self.passed = torch.zeros((), dtype=torch.int64)
        """Number of milestones whose weights are published."""
        self.last_score_N = torch.zeros(num_samples, dtype=torch.float64)
        self.last_right_N = torch.zeros(num_samples, dtype=torch.bool)
        self.last_label_N = torch.full((num_samples,), -1)
        """int64, -1 for a sample never scored. The present weights were built from these three tensors."""
        self._score_N = torch.zeros(num_samples, dtype=torch.float64)
        self._times_N = torch.zeros(num_samples, dtype=torch.int32)
        self._right_N = torch.zeros(num_samples, dtype=torch.int32)
        self._label_N = torch.zeros(num_samples, dtype=torch.int64)  # summed too, so that ranks merge by addition

    def observe(self, out: ModelOutput, batch: Batch) -> None:
        """Adds softmax(s)_y of each sample and whether its prediction was right; s is the mean over experts."""
        logits_BC = widened(out.mean_logits_BC.detach())
        score_B = logits_BC.softmax(1).gather(1, batch.labels_B[:, None])[:, 0].double()
        right_B = logits_BC.argmax(1) == batch.labels_B
        self._score_N.index_add_(0, batch.index_B, score_B)
        self._times_N.index_add_(0, batch.index_B, torch.ones_like(batch.index_B, dtype=torch.int32))
        self._right_N.index_add_(0, batch.index_B, right_B.int())
        self._label_N.index_add_(0, batch.index_B, batch.labels_B)

    def merge(self, progress: float) -> None:
        """Publishes new weights where a milestone was passed since the last merge; only then a collective."""
        passed = sum(progress >= milestone for milestone in self.spec.milestones)
        if passed > int(self.passed):
            self._rebuild()
            self.passed.fill_(passed)
        for pending in self.pending().values():
            pending.zero_()

    def _rebuild(self) -> None:
        for pending in self.pending().values():
            dist.all_reduce_sum_(pending)
        shown_N, times_N = self._times_N > 0, self._times_N.clamp_min(1)
        self.last_score_N.copy_(torch.where(shown_N, self._score_N / times_N, self.last_score_N))
        self.last_right_N.copy_(torch.where(shown_N, self._right_N > 0, self.last_right_N))
        self.last_label_N.copy_(torch.where(shown_N, self._label_N // times_N, self.last_label_N))
        seen_N, label_N = self.last_label_N >= 0, self.last_label_N
        relative_EN, factor_EC = environment_weights(
            self.last_score_N,
            self.last_right_N,
            seen_N,
            label_N,
            self._counts_C,
            env_type=self.spec.env_type,
            num_envs=self.spec.num_envs,
            tail_ratio=self.spec.tail_ratio,
            scaling=self.spec.env_scaling,
        )
        total_C = class_totals(relative_EN, factor_EC, seen_N, label_N, self._counts_C).mean(0)
        self.relative_EN.copy_(relative_EN)
        self.factor_EC.copy_(factor_EC)
        self.mean_weight_C.copy_(torch.where(self._counts_C > 0, total_C / self._counts_C.clamp_min(1), 1.0))

    def weights(self, batch: Batch) -> Tensor:
        """Returns float32 [E, B], the weight of each sample in each environment.

        The mean over the training split is 1.
        """
        return self.relative_EN[:, batch.index_B] * self.factor_EC[:, batch.labels_B]

    def mean_weights(self, labels_N: Tensor) -> Tensor:
        """Returns float32 [N], the weight of each sample of the split averaged over environments.

        ``labels_N`` are the classes of the samples.
        """
        return (self.relative_EN * self.factor_EC[:, labels_N]).mean(0)

    def published(self) -> dict[str, Tensor]:
        return {
            "relative_EN": self.relative_EN,
            "factor_EC": self.factor_EC,
            "mean_weight_C": self.mean_weight_C,
            "passed": self.passed,
            "last_score_N": self.last_score_N,
            "last_right_N": self.last_right_N,
            "last_label_N": self.last_label_N,
        }

    def pending(self) -> dict[str, Tensor]:
        return {
            "score_N": self._score_N,
            "times_N": self._times_N,
            "right_N": self._right_N,
            "label_N": self._label_N,
        }
