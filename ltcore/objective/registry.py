"""Registry of base losses, terms and stage 2 methods, by name.

A new method is one file plus one line here. The config sections (``objective.base_options.<name>``,
``objective.terms.<name>``, ``stage2.options.<name>``), the command-line and Tune keys, ``ltcore methods`` and the
contract tests follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ltcore.objective.controls import CONTROLS, Control
from ltcore.objective.losses.balanced_softmax import BalancedSoftmax
from ltcore.objective.losses.bbn import Bbn
from ltcore.objective.losses.class_balanced import ClassBalanced
from ltcore.objective.losses.cross_entropy import CrossEntropy
from ltcore.objective.losses.focal import Focal
from ltcore.objective.losses.gpaco import Gpaco
from ltcore.objective.losses.ldam import Ldam
from ltcore.objective.losses.lff import Lff
from ltcore.objective.losses.logit_adjust import LogitAdjust
from ltcore.objective.losses.paco import Paco
from ltcore.objective.losses.ride import Ride
from ltcore.objective.losses.sade import Sade
from ltcore.objective.stage2.crt import Crt
from ltcore.objective.stage2.dro import DroClassifier
from ltcore.objective.stage2.lws import Lws
from ltcore.objective.stage2.ncm import Ncm
from ltcore.objective.stage2.tau_norm import TauNorm
from ltcore.objective.stage2.weight_balance import WeightBalance
from ltcore.objective.terms.dro import Dro
from ltcore.objective.terms.ifl.term import Ifl
from ltcore.objective.terms.lpa.term import Lpa
from ltcore.plugins.generated import add_row, generate, grow
from ltcore.plugins.loading import attach
from ltcore.plugins.parts import Part


@dataclass(frozen=True)
class Row:
    """A registered method and its description."""

    build: Any
    """The ``Base``, ``Term`` or ``HeadMethod`` class; its options are the nested dataclass ``Config``."""
    summary: str
    """What it does, in one line."""
    paper: str
    """Its source."""
    num_experts: int | None = None
    """The only number of experts that a base with an expert head supports; None for any from 2 on."""
    controls: tuple[Control, ...] = ()
    """Of a term: what an ablation compares it with, beside the run without any term."""


BASES: dict[str, Row] = {
    "cross_entropy": Row(CrossEntropy, "cross-entropy; label smoothing, class weights of your own", "-"),
    "balanced_softmax": Row(BalancedSoftmax, "cross-entropy of logits plus the log prior", "Ren et al., NeurIPS 2020"),
    "logit_adjust": Row(LogitAdjust, "cross-entropy of logits plus tau times the log prior", "Menon et al., ICLR 2021"),
    "class_balanced": Row(ClassBalanced, "cross-entropy or focal by effective number, or DRW", "Cui et al., CVPR 2019"),
    "focal": Row(Focal, "cross-entropy that counts well predicted samples less", "Lin et al., ICCV 2017"),
    "ldam": Row(Ldam, "margins by class frequency on a cosine head, then DRW", "Cao et al., NeurIPS 2019"),
    "paco": Row(Paco, "contrast against keys, a queue and one learnable center per class", "Cui et al., ICCV 2021"),
    "gpaco": Row(Gpaco, "PaCo of both views of an image, without a key encoder", "Cui et al., TPAMI 2023"),
    "ride": Row(Ride, "LDAM for several experts, pushed away from their mean", "Wang et al., ICLR 2021"),
    "bbn": Row(Bbn, "two streams and two last blocks, mixed from one to the other", "Zhou et al., CVPR 2020"),
    "lff": Row(Lff, "a biased second network tells which samples are hard", "Nam et al., NeurIPS 2020"),
    "sade": Row(Sade, "three experts, one for each of three priors", "Zhang et al., NeurIPS 2022", num_experts=3),
}

TERMS: dict[str, Row] = {
    "lpa": Row(
        Lpa,
        "classes that share local parts as soft positives",
        "NeurIPS 2022, no public code",
        controls=CONTROLS["lpa"],
    ),
    "dro": Row(
        Dro,
        "robust distance of features to their class centroid",
        "Samuel and Chechik, ICCV 2021",
        controls=CONTROLS["dro"],
    ),
    "ifl": Row(
        Ifl,
        "features invariant across environments found from scores",
        "Tang et al., ECCV 2022",
        controls=CONTROLS["ifl"],
    ),
}

STAGE2: dict[str, Row] = {
    "tau_norm": Row(TauNorm, "class weights divided by a power of their length", "Kang et al., ICLR 2020"),
    "crt": Row(Crt, "a new classifier on a class-balanced stream", "Kang et al., ICLR 2020"),
    "lws": Row(Lws, "one learned factor per class on a class-balanced stream", "Kang et al., ICLR 2020"),
    "ncm": Row(Ncm, "the nearest class mean, by cosine or distance", "Kang et al., ICLR 2020"),
    "dro": Row(DroClassifier, "the classifier of stage 1 on a balanced stream", "Samuel and Chechik, ICCV 2021"),
    "weight_balance": Row(WeightBalance, "class-balanced loss, decay and MaxNorm", "Alshammari et al., CVPR 2022"),
}

if TYPE_CHECKING:  # stand-ins for the classes generated below

    class BaseOptions:
        def __init__(self, **options: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    class Terms:
        def __init__(self, **terms: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    class Stage2Options:
        def __init__(self, **options: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    BaseOptions = generate(
        "BaseOptions",
        __name__,
        "Options of every base loss, under its name. Those of a base that is not chosen must keep their defaults.",
        [(name, row.build.Config, field(default_factory=row.build.Config)) for name, row in BASES.items()],
    )
    Terms = generate(
        "Terms",
        __name__,
        "One optional section per term; null is off.",
        [(name, row.build.Config | None, field(default=None)) for name, row in TERMS.items()],
    )
    Stage2Options = generate(
        "Stage2Options",
        __name__,
        "Options of every method of stage 2, under its name. Those of a method that is not chosen must keep their defaults.",
        [(name, row.build.Config, field(default_factory=row.build.Config)) for name, row in STAGE2.items()],
    )


def _add_base(part: Part) -> None:
    add_row(BASES, part.kind, part.name, Row(part.build, part.summary, part.paper, **part.extra))
    grow(BaseOptions, part.name, part.build.Config, optional=False)


def _add_term(part: Part) -> None:
    add_row(TERMS, part.kind, part.name, Row(part.build, part.summary, part.paper, **part.extra))
    grow(Terms, part.name, part.build.Config, optional=True)


def _add_stage2(part: Part) -> None:
    add_row(STAGE2, part.kind, part.name, Row(part.build, part.summary, part.paper))
    grow(Stage2Options, part.name, part.build.Config, optional=False)


attach("loss", _add_base)
attach("term", _add_term)
attach("stage2", _add_stage2)
