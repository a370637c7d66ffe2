"""How fast the key encoder follows the trained network: by the length of training, or as configured.

An exponential moving average begins as a copy of the initial weights, and after s steps still consists of decay^s of
them. At PaCo's 0.999 that is 95% after 50 steps: in a short training, keys and clustered feature maps would be those of
a random network.
"""

from __future__ import annotations

from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import Manifest
from ltcore.models.weights import AUTO
from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import BASES, TERMS

LEFT = 0.05
"""Share of the initial weights that 'auto' leaves where the key encoder is first used."""
MOST = 0.999
"""The decay of MoCo and PaCo, for trainings of any greater length."""
FROM_THE_START = 0.1
"""Fraction of training taken for a loss that uses keys from its first step."""
_RANDOM = 0.5
"""Share of the initial weights above which a configured decay is remarked on."""


def users(cfg: ObjectiveConfig) -> dict[str, float]:
    """Returns the losses that use keys and the fraction of training at which each of them starts."""
    base = {cfg.base: 0.0} if "key" in BASES[cfg.base].build.needs else {}
    return base | {name: term.start for name, term in cfg.active_terms().items() if "key" in TERMS[name].build.needs}


def steps_before(cfg: RunConfig, steps_per_epoch: int) -> float:
    """Returns the training steps before keys are first used, or should be of use; at least 1."""
    first = min((start or FROM_THE_START for start in users(cfg.objective).values()), default=FROM_THE_START)
    return max(first * cfg.train.epochs * steps_per_epoch, 1.0)


def key_decay(cfg: RunConfig, steps_per_epoch: int) -> float:
    """Returns the decay per step: that of the configuration, or ``LEFT^(1 / steps_before)`` up to ``MOST``."""
    if cfg.model.key_decay != AUTO:
        return float(cfg.model.key_decay)
    return min(LEFT ** (1 / steps_before(cfg, steps_per_epoch)), MOST)


def remark(cfg: RunConfig, manifest: Manifest) -> str:
    """Says that the configured decay is too slow for this training; '' where it is not, or no loss uses keys."""
    losses = users(cfg.objective)
    if not losses or cfg.model.key_decay == AUTO:
        return ""
    steps_per_epoch = manifest.split(cfg.data.train_split).num_samples // cfg.train.batch_size
    steps, decay = steps_before(cfg, steps_per_epoch), key_decay(cfg, steps_per_epoch)
    left = decay**steps
    if left <= _RANDOM:
        return ""
    better = key_decay(cfg.replace({"model.key_decay": AUTO}), steps_per_epoch)
    fraction = steps / max(cfg.train.epochs * steps_per_epoch, 1)
    return (
        f"model.key_decay={decay:g}: after {fraction:.0%} of training ({steps:.0f} steps) {left:.0%} of the key encoder, which "
        f"{' and '.join(losses)} use{'s' * (len(losses) == 1)}, is still its initial weights; model.key_decay={AUTO} would be "
        f"{better:.4g}"
    )
