"""RIDE, stage 1: several experts, each trained by LDAM on its own and pushed away from their mean.

    L_i = sum_e [ w_i LDAM(s_ie) - diversity_weight mean_c(T_c)^2 KL( softmax(m_i / T) || softmax(s_ie / T) ) ]
    m_i = mean_e s_ie,    T_c = temperature u_c / max u,    u_c = temperature_spread C pi_c + 1 - temperature_spread

Until ``drw_start`` all w_i are 1 and all T_c are ``temperature``.

Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts", ICLR 2021: individual loss
and diversity loss of stage 1, in the form of the authors' code that SADE and GLT ship. The router of stage 2 is not
included. The LDAM part is ``ltcore.objective.losses.ldam``; its notes on scale, margins and weights apply.
Differs: ``diversity_weight`` is positive and subtracted (theirs is added: -0.2 by default, as in SADE and GLT, -0.45 in
their files for CIFAR-100); at 0 the experts are independent,
whereas the authors' code then trains all of them on the loss of the mean logits. The mean is not detached, which
changes nothing: among all targets it has the smallest sum of divergences, so no gradient passes through it. pi is the
prior chosen by ``objective.prior``, and the temperatures begin at a fraction of training. The weighted loss is divided
by the number of samples; ``weight_norm='batch_sum'`` is the published normalization. Mixed images (GLT's code has RIDE
with mixup) mix the LDAM part; the divergence does not depend on labels.
Shapes: logits [B, E, C] -> loss [B]. Predictions use the mean over experts.
Cost: O(B E C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.errors import at_least, positive, within
from ltcore.objective.dims import widened
from ltcore.objective.interface import LossContext
from ltcore.objective.losses.ldam import Ldam


class Ride(Ldam):
    """LDAM of each expert minus its divergence from the ensemble, for two or more experts with cosine heads."""

    expert_head = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Ldam.Config):
        diversity_weight: float = 0.2
        """Factor of the divergence that is subtracted, >= 0. 0 trains independent experts. The authors: 0.45 for CIFAR-100."""
        temperature: float = 1.0
        """Divides the logits (scaled cosines) in the divergence, > 0; from ``drw_start`` on it is the temperature of
        the most frequent class.
        """
        temperature_spread: float = 0.05
        """How much lower the temperatures of rarer classes are from ``drw_start`` on. Range [0, 1]: 0 is one
        temperature for all, 1 is proportional to the prior. SADE's copy of the code: 0.05; GLT's: 0.02.
        """

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(0, diversity_weight=self.diversity_weight)
            positive(temperature=self.temperature)
            within("[0, 1]", temperature_spread=self.temperature_spread)

    cfg: Config

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the loss [B] of each sample, summed over experts. Raises ValueError for logits of a single head."""
        logits_BEC = widened(out.logits_BC)
        if logits_BEC.dim() != 3:
            raise ValueError(f"RIDE needs logits [B, E, C] of several experts, got shape {tuple(logits_BEC.shape)}")
        temperature_C = self._temperature(ctx).to(logits_BEC.dtype)
        loss_B = -self.cfg.diversity_weight * temperature_C.mean().square() * divergence(logits_BEC / temperature_C)
        for logits_BC in logits_BEC.unbind(1):
            loss_B = loss_B + super().forward(replace(out, logits_BC=logits_BC), labels_B, ctx)
        return loss_B

    def _temperature(self, ctx: LossContext) -> Tensor:
        """Returns the temperatures [C], or [1] while all are equal."""
        cfg, share_C = self.cfg, ctx.log_prior_C.exp()
        if ctx.progress < cfg.drw_start:
            return share_C.new_full((1,), cfg.temperature)
        relative_C = cfg.temperature_spread * len(share_C) * share_C + 1 - cfg.temperature_spread
        return cfg.temperature * relative_C / relative_C.max()


def divergence(logits_BEC: Tensor) -> Tensor:
    """Returns [B], the sum of KL(softmax of the mean logits || softmax of an expert's logits).

    The sum runs over experts. The softmax m of the mean logits is the normalized geometric mean of the experts' p_e:
    with log Z = log sum_c exp(mean_e log p_ec), log m = mean_e log p_e - log Z, so that the sum of the divergences is
    -E log Z.
    """
    mean_BC = logits_BEC.log_softmax(2).mean(1)
    return -logits_BEC.shape[1] * torch.logsumexp(mean_BC, 1)
