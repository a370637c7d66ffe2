"""Combinations of an objective with a stream of images that are refused: mixed images, and sampling by class.

Raised from ``RunConfig.__post_init__``; each message starts with the key that would have to change.
"""

from __future__ import annotations

from ltcore.data.augment.config import AugmentConfig
from ltcore.data.loading.class_sampling import NATURAL
from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import BASES, TERMS


def check_mixing(augment: AugmentConfig, objective: ObjectiveConfig) -> None:
    """Raises ValueError where images are mixed and the objective needs images of one class."""
    if augment.mixup_alpha == 0:
        return
    base = objective.base
    if not BASES[base].build.label_mix:
        raise ValueError(
            f"augment.mixup_alpha={augment.mixup_alpha} does not go with objective.base={base}, which is not "
            "a function of one label. Set augment.mixup_alpha=0 or choose another base"
        )
    for name, cfg in objective.active_terms().items():
        if reason := TERMS[name].build.mix_refusal(cfg):
            raise ValueError(
                f"augment.mixup_alpha={augment.mixup_alpha} does not go with objective.terms.{name}: {reason}. "
                f"Set augment.mixup_alpha=0 or objective.terms.{name}=null"
            )


def check_sampling(sampling: str, objective: ObjectiveConfig) -> None:
    """Raises ValueError where the classes would be balanced twice, or a term needs the natural stream."""
    if sampling == NATURAL:
        return
    base = objective.base
    balances = BASES[base].build.balances(getattr(objective.base_options, base))
    if balances and objective.prior != "stream":
        raise ValueError(
            f"train.sampling={sampling} does not go with objective.base={base}, which {balances}, as long as its prior is "
            f"that of the data set: the classes would be balanced twice. Set objective.prior=stream or train.sampling={NATURAL}"
        )
    if balances and sampling == "class_balanced":
        raise ValueError(
            f"train.sampling={sampling} does not go with objective.base={base}, which {balances}: in a stream with equally "
            f"frequent classes nothing is left to balance. Set train.sampling={NATURAL} or objective.base=cross_entropy"
        )
    for name, cfg in objective.active_terms().items():
        if reason := TERMS[name].build.sampling_refusal(cfg):
            raise ValueError(
                f"train.sampling={sampling} does not go with objective.terms.{name}: {reason}. Set "
                f"train.sampling={NATURAL} or objective.terms.{name}=null"
            )
