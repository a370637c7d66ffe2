"""The losses of a case in the form of their papers, on the outputs and memories of that case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ltcore.benchmarks import reference_losses as literal
from ltcore.benchmarks.loss_cases import PROGRESS, Case
from ltcore.objective.class_weights import effective_weights
from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.objective.memory.queue import Queue
from ltcore.objective.objective import Objective
from ltcore.objective.terms.ifl.scores import ScoreTable
from ltcore.objective.terms.lpa.prototypes import Prototypes


def literally(case: Case, name: str, objective: Objective) -> Callable[[], Tensor]:
    """Returns a call of the same loss as its paper writes it, with gradient.

    It reads the memories of ``objective``.
    """
    return _with_gradient(_form(case, name, objective))


def dro_by_bank(case: Case, objective: Objective) -> Callable[[], Tensor]:
    """Returns a call of the authors' form, with centroids from the whole bank at every step."""
    return _with_gradient(_dro(case, objective, by_bank=True))


def _with_gradient(form: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        loss = form()
        loss.backward()
        return loss.detach()

    return call


def _form(case: Case, name: str, objective: Objective) -> Callable[[], Tensor]:
    logits, labels, counts = case.out.logits_BC, case.batch.labels_B, case.counts_C
    cfg = getattr(objective.cfg.base_options, name, None)
    forms: dict[str, Callable[[], Tensor]] = {
        "cross_entropy": lambda: literal.cross_entropy(logits, labels),
        "balanced_softmax": lambda: literal.balanced_softmax(logits, labels, counts),
        "logit_adjust": lambda: literal.logit_adjust(logits, labels, counts, cast(Any, cfg).tau),
        "class_balanced": lambda: literal.class_balanced(logits, labels, counts, cast(Any, cfg).beta),
        "focal": lambda: literal.focal(logits, labels, cast(Any, cfg).gamma),
        "sade": lambda: literal.sade(case.expert_out.logits_BC, labels, counts, cast(Any, cfg).tau),
    }
    if name in forms:
        return forms[name]
    makers = {"ldam": _ldam, "ride": _ride, "paco": _paco, "lpa": _lpa, "dro": _dro, "ifl": _ifl}
    return makers[name](case, objective)


def _ldam(case: Case, objective: Objective) -> Callable[[], Tensor]:
    cfg = objective.cfg.base_options.ldam
    weights_C = effective_weights(case.counts_C, cfg.beta).float() if cfg.drw_start <= PROGRESS else None
    return lambda: literal.ldam(
        case.out.logits_BC, case.batch.labels_B, case.counts_C, cfg.max_margin, cfg.scale, weights_C
    )


def _ride(case: Case, objective: Objective) -> Callable[[], Tensor]:
    cfg = objective.cfg.base_options.ride
    assert cfg.drw_start > PROGRESS, "neither weights nor temperatures by class yet"
    return lambda: literal.ride(
        case.expert_out.logits_BC,
        case.batch.labels_B,
        case.counts_C,
        cfg.max_margin,
        cfg.scale,
        cfg.diversity_weight,
        cfg.temperature,
    )


def _elements(case: Case, objective: Objective) -> tuple[Callable[[], Tensor], Tensor]:
    """Returns a function that joins queries, keys and queue, and their labels."""
    queue = next(m for m in objective.memories().values() if isinstance(m, Queue))
    labels_B, out = case.batch.labels_B, case.out
    assert out.query_Bd is not None and out.key_Bd is not None
    joined = [out.query_Bd, out.key_Bd, queue.keys_Qd]
    return lambda: torch.cat(joined), torch.cat([labels_B, labels_B, queue.labels_Q])


def _paco(case: Case, objective: Objective) -> Callable[[], Tensor]:
    cfg = objective.cfg.base_options.paco
    elements, labels_A = _elements(case, objective)
    return lambda: literal.paco(
        case.out.logits_BC,
        elements(),
        labels_A,
        case.batch.labels_B,
        case.counts_C,
        alpha=cfg.sample_weight,
        beta=cfg.center_weight,
        temperature=cfg.temperature,
    )


def _lpa(case: Case, objective: Objective) -> Callable[[], Tensor]:
    cfg = objective.cfg.terms.lpa
    elements, labels_A = _elements(case, objective)
    prototypes = next(m for m in objective.memories().values() if isinstance(m, Prototypes))
    similarity_CC = torch.zeros(case.size.classes, case.size.classes)
    similarity_CC.scatter_(1, prototypes.neighbors_Ck, prototypes.weights_Ck)
    fmap_BDhw = cast(Tensor, case.out.fmap_BDhw)
    mass_CK = torch.zeros(case.size.classes, prototypes.num_clusters, dtype=torch.int64)

    def form() -> Tensor:
        base = literal.cross_entropy(case.out.logits_BC, case.batch.labels_B)
        vectors_BPD = fmap_BDhw.flatten(2).transpose(1, 2)
        scores_BK = literal.lpa_scores(vectors_BPD, prototypes.prototypes_KD[: prototypes.num_clusters])
        mass_CK.index_add_(0, case.batch.labels_B, scores_BK)
        penalty = literal.lpa(
            elements(),
            labels_A,
            case.batch.labels_B,
            similarity_CC,
            neighbor_mass=cfg.neighbor_mass,
            temperature=cfg.temperature,
        )
        return base + cfg.weight * penalty

    return form


def _dro(case: Case, objective: Objective, by_bank: bool = False) -> Callable[[], Tensor]:
    cfg = objective.cfg.terms.dro
    centroids = next(m for m in objective.memories().values() if isinstance(m, ClassCentroids))
    eps_C = (cfg.radius * (centroids.pooled_var / case.counts_C.double().clamp_min(1)).sqrt()).float()
    mean_CD, labels_B = centroids.mean_CD.float(), case.batch.labels_B

    def form() -> Tensor:
        base = literal.cross_entropy(case.out.logits_BC, labels_B)
        centers_CD = literal.bank_means(case.bank_ND, case.bank_labels_N, case.size.classes) if by_bank else mean_CD
        return base + cfg.weight * literal.dro(case.out.features_BD, labels_B, centers_CD, eps_C, cfg.temperature)

    return form


def _ifl(case: Case, objective: Objective) -> Callable[[], Tensor]:
    cfg = objective.cfg.terms.ifl
    memories = objective.memories().values()
    centroids = next(m for m in memories if isinstance(m, ClassCentroids))
    scores = next(m for m in memories if isinstance(m, ScoreTable))
    grown = cfg.weight * cfg.center_weight * cfg.center_growth ** len(cfg.milestones)
    mean_CD, weights_EB = centroids.mean_CD.float(), scores.weights(case.batch)
    return lambda: literal.ifl(
        case.out.logits_BC, case.out.features_BD, case.batch.labels_B, weights_EB, mean_CD, grown
    )
