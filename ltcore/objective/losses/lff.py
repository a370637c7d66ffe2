"""LFF, learning from failure: a second network is biased on purpose, and where it fails the first learns more.

    L_i = q p_i^q CE(b_i) + w_i CE(s_i)
    w_i = CE(b_i) / (CE(b_i) + CE(s_i) + 1e-8)

s_i are the logits of the network that is evaluated, b_i those of its twin, p_i the twin's probability of the label. Neither
q p_i^q nor w_i has a gradient. The first part is the gradient of generalized cross-entropy: the twin learns most from what it
knows already, and so follows whatever is frequent, of classes as of attributes.

Source: Nam et al., "Learning from failure: de-biasing classifier from biased classifier", NeurIPS 2020, in the form of GLT's
code.
Differs from the paper, as GLT does: w_i is of this step's losses, where the authors average those of a sample over epochs and
divide them by the largest of its class. GLT's LFFLA is this base with post-hoc logit adjustment (``--posthoc-tau``). Differs
from both: one optimizer serves the two networks, so a limit on the norm of the gradient (``train.optim.clip_norm``) is one for
both. Mixed images, which neither source has, mix the losses of their two labels.
Shapes: logits and the twin's logits [B, C] -> loss [B].
Cost: a second network that is trained like the first; nothing in evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import positive
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext

_EPS = 1e-8


class Lff(Base):
    """Cross-entropy weighted by the relative difficulty that a sample has for a biased network."""

    needs = frozenset({"twin"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        q: float = 0.7
        """Exponent of generalized cross-entropy for the twin, > 0: the larger, the less it learns from what it does not know."""

        def __post_init__(self) -> None:
            positive(q=self.q)

    cfg: Config

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample, that of the twin included."""
        assert out.twin_logits_BC is not None, "listed in the needs"
        biased_B = F.cross_entropy(widened(out.twin_logits_BC), labels_B, reduction="none")
        target_B = F.cross_entropy(widened(out.mean_logits_BC), labels_B, reduction="none")
        known_B = self.cfg.q * (-self.cfg.q * biased_B.detach()).exp()
        hard_B = (biased_B / (biased_B + target_B + _EPS)).detach()
        return known_B * biased_B + hard_B * target_B
