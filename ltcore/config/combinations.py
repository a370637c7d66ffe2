"""Combinations of an objective that are refused: with mixed images, sampling by class, and a compiled step.

Raised from ``RunConfig.__post_init__``; each message starts with the key that would have to change.
"""

from __future__ import annotations

from ltcore.data.augment.config import AugmentConfig
from ltcore.data.loading.class_sampling import BALANCED, CLASS_AWARE, NATURAL
from ltcore.objective.class_weights import NATURAL as NATURAL_WEIGHTS
from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import BASES, TERMS

COMPILE = ("off", "default", "reduce-overhead")
"""Values of ``train.compile``."""


def check_mixing(augment: AugmentConfig, objective: ObjectiveConfig, sampling: str) -> None:
    """Raises ValueError where images are mixed and the objective needs images of one class, or neighbors share theirs."""
    on = {key: getattr(augment, key) for key in ("mixup_alpha", "cutmix_alpha") if getattr(augment, key) > 0}
    if not on:
        return
    what = " and ".join(f"augment.{key}={value}" for key, value in on.items()) + (" does" if len(on) == 1 else " do")
    off = " and ".join(f"augment.{key}=0" for key in on)
    if sampling == CLASS_AWARE:
        raise ValueError(
            f"{what} not go with train.sampling={sampling}, by which images of one class come in a row: neighbors are mixed, so "
            f"every label would stay what it is. Set {off} or another train.sampling, such as class_balanced"
        )
    base = objective.base
    if not BASES[base].build.label_mix:
        raise ValueError(
            f"{what} not go with objective.base={base}, which is not a function of one label. Set {off} or choose another base"
        )
    for name, cfg in objective.active_terms().items():
        if reason := TERMS[name].build.mix_refusal(cfg):
            raise ValueError(
                f"{what} not go with objective.terms.{name}: {reason}. Set {off} or objective.terms.{name}=null"
            )


def check_pairs(bilateral: bool, sampling: str, objective: ObjectiveConfig) -> None:
    """Raises ValueError where pairs of images meet another network or stream, or terms, and where nothing needs pairs."""
    base = objective.base
    if not BASES[base].build.pairs:
        if bilateral:
            raise ValueError(
                f"model.bilateral=true does not go with objective.base={base}, which takes single images. Set "
                "model.bilateral=false or objective.base=bbn"
            )
        return
    if not bilateral:
        raise ValueError(
            f"model.bilateral=false does not go with objective.base={base}, which has one branch of the network for each of two "
            "streams. Set model.bilateral=true"
        )
    if sampling != NATURAL:
        raise ValueError(
            f"train.sampling={sampling} does not go with objective.base={base}, which brings a second stream beside the natural "
            f"one. Set train.sampling={NATURAL} or choose another base"
        )
    for name in objective.active_terms():
        raise ValueError(
            f"objective.terms.{name} does not go with objective.base={base}, which mixes the features of two images, while terms "
            f"are defined for those of one. Set objective.terms.{name}=null or choose another base"
        )


def check_sampling(sampling: str, objective: ObjectiveConfig) -> None:
    """Raises ValueError where the classes would be balanced twice, or a term needs the natural stream."""
    base = objective.base
    options = getattr(objective.base_options, base)
    if getattr(options, "class_weights", None) == NATURAL_WEIGHTS and sampling not in BALANCED:
        raise ValueError(
            f"train.sampling={sampling} does not go with objective.base_options.{base}.class_weights={NATURAL_WEIGHTS}, which "
            f"undoes a class-balanced stream: here large classes would count twice. Set class_weights=null or train.sampling to "
            f"one of {', '.join(BALANCED)}"
        )
    if sampling == NATURAL:
        return
    balances = BASES[base].build.balances(options)
    if balances and objective.prior != "stream":
        raise ValueError(
            f"train.sampling={sampling} does not go with objective.base={base}, which {balances}, as long as its prior is "
            f"that of the data set: the classes would be balanced twice. Set objective.prior=stream or train.sampling={NATURAL}"
        )
    if balances and sampling in BALANCED:
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


def check_compile(mode: str, accumulate: int, objective: ObjectiveConfig) -> None:
    """Raises ValueError where every step would be compiled anew, or a replayed graph would write over gradients."""
    if mode == COMPILE[2] and accumulate > 1:
        raise ValueError(
            f"train.compile={mode} does not go with train.accumulate={accumulate}: the graph of the next backward pass writes "
            "where the gradients of the last one lie, so torch cannot add them up (pytorch/pytorch#169545). Set "
            "train.accumulate=1 or train.compile=default"
        )
    if mode != COMPILE[0] and BASES[objective.base].build.pairs:
        raise ValueError(
            f"train.compile={mode} does not go with objective.base={objective.base}, whose share changes with every step, which "
            "would be compiled again. Set train.compile=off or choose another base"
        )
