"""A toy training run for any row of the registry: batches with every field a loss may ask for, and filled memories.

Twelve classes, so that a class order sorted as text (0, 1, 10, 11, 2, ...) would show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ltcore import dist
from ltcore.batch import Batch, Mix, ModelOutput
from ltcore.models.net import MAP
from ltcore.objective.dims import FeatureDims
from ltcore.objective.memory.base import Memory
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import BASES, TERMS, BaseOptions, Terms
from ltcore.rng import generator
from ltcore.shots import shot_groups_by_rank
from ltcore.stats import ClassStats

COUNTS = (12, 10, 9, 8, 7, 6, 5, 5, 4, 3, 2, 1)
CLASSES, SAMPLES, FEATURES, PROJECTION, EXPERTS, SIDE = len(COUNTS), sum(COUNTS), 6, 5, 3, 2
STAGES = {"stage1": 3, "stage2": 4}
DIMS = FeatureDims(FEATURES, PROJECTION, SAMPLES, STAGES)
NESTED = ("stage_features_BD", "stage_fmaps_BDhw", "second")
"""Fields of an output that hold several tensors."""
SECOND = "second/"
PROGRESS = 0.9
"""Where losses are compared: after every start and milestone of the default configurations."""


def stats(order_C: Tensor | None = None) -> ClassStats:
    """Returns toy counts; ``order_C[c]`` is the new number of class c."""
    counts_C = torch.tensor(COUNTS)
    if order_C is not None:
        counts_C = torch.zeros_like(counts_C).index_put((order_C,), counts_C)
    return ClassStats(counts_C, shot_groups_by_rank(counts_C.tolist()))


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross_entropy+smoothing": ("cross_entropy", {"label_smoothing": 0.1}),
    "class_balanced+focal": ("class_balanced", {"focal_gamma": 2.0, "weight_norm": "batch_sum"}),
    "cross_entropy+weights": ("cross_entropy", {"class_weights": "auto", "weight_norm": "batch_sum"}),
    "focal+weights": ("focal", {"class_weights": "auto"}),
    "focal+sigmoid": ("focal", {"form": "sigmoid"}),
    "focal+detach": ("focal", {"detach": True}),
    "ldam+batch_sum": ("ldam", {"weight_norm": "batch_sum"}),
    "paco+paper": ("paco", {"normalize_by_weight": False}),
    "paco+no-queue": ("paco", {"queue_size": 0}),
    "paco+no-contrast": ("paco", {"sample_weight": 0.0, "neg_weight": 0.0}),
    "gpaco+smoothing": ("gpaco", {"label_smoothing": 0.1, "queue_size": 0}),
    "sade+order": ("sade", {"ties": "order"}),
    "dro+anchor": ("dro", {"denominator": "anchor", "slack": 2, "radius_mode": "se"}),
    "dro+shared": ("dro", {"radius_mode": "shared"}),
    "dro+learned": ("dro", {"radius_mode": "learned_compat"}),
    "dro+layers": ("dro", {"layers": ("stage2", "final", "stage1")}),
    "dro+learned-layers": ("dro", {"radius_mode": "learned_compat", "layers": ("final", "stage2")}),
    "lpa+own": (
        "lpa",
        {
            "embedding": "own",
            "positives": "sample",
            "layers": ("stage2", "final"),
            "scales": (1, 2),
            "score": "presence",
        },
    ),
    "lpa+pooled": ("lpa", {"embedding": "pooled", "layers": ("stage1",), "online_rate": 0.5, "similarity": "jaccard"}),
    "lpa+one-view": ("lpa", {"views": 1}),
    "lpa+whitened": ("lpa", {"metric": "whitened", "score": "soft", "threshold": None}),
    "ifl+repeat": ("ifl", {"env_mode": "repeat"}),
    "ifl+irm": ("ifl", {"irm_weight": 0.1, "num_envs": 3, "center": "cosine"}),
    "ifl+triplet": ("ifl", {"center": "triplet", "env_type": "inter_intra", "num_envs": 4}),
}
"""Rows with options under which a loss takes another branch, other fields of the output, or other memories."""
FEW_CLASSES: dict[str, dict[str, Any]] = {"lpa": {"threshold": 0.0}}
"""Options without which toy data leave a term without effect: so few classes are never more alike than by chance."""


def key_of(row: str) -> str:
    """Returns the name of a row's loss in the registry; of a term, also in the objective."""
    return VARIANTS[row][0] if row in VARIANTS else row


BASE_ROWS = [*BASES, *(row for row in VARIANTS if key_of(row) in BASES)]
TERM_ROWS = [*TERMS, *(row for row in VARIANTS if key_of(row) in TERMS)]
ROWS = [("base", name) for name in BASE_ROWS] + [("term", name) for name in TERM_ROWS]


def method(kind: str, name: str) -> Any:
    """Returns the class of a row."""
    return (BASES if kind == "base" else TERMS)[key_of(name)].build


def options(row: str) -> dict[str, Any]:
    """Returns what a row changes of the defaults."""
    return FEW_CLASSES.get(key_of(row), {}) | (VARIANTS[row][1] if row in VARIANTS else {})


def term_config(row: str, **changes: Any) -> Any:
    """Returns the configuration of a row's term, live from the beginning, otherwise with its defaults."""
    return replace(method("term", row).Config(), **({"start": 0.0} | options(row) | changes))


def objective_config(base: str, **terms: Any) -> ObjectiveConfig:
    """Returns the configuration of a row's base, and of the given terms."""
    base_options = BaseOptions(**{key_of(base): method("base", base).Config(**options(base))})
    return ObjectiveConfig(base=key_of(base), base_options=base_options, terms=Terms(**terms))


def build(base: str = "cross_entropy", order_C: Tensor | None = None, **terms: Any) -> Objective:
    """Builds the objective of one base and the given term configurations, on toy data."""
    objective = Objective(objective_config(base, **terms), stats(order_C), DIMS, seed=0).double()
    for name, parameter in objective.named_parameters():  # [C, ...], where all classes begin alike
        drawn = 0.3 * torch.randn(parameter.shape, generator=generator(0, name))
        parameter.data += drawn if order_C is None else torch.zeros_like(drawn).index_copy(0, order_C, drawn)
    return objective


def build_row(kind: str, name: str, order_C: Tensor | None = None) -> Objective:
    """Builds the objective of a row; ``kind`` is 'base' or 'term'."""
    if kind == "base":
        return build(name, order_C)
    return build("balanced_softmax", order_C, **{key_of(name): term_config(name)})


def batch_of(index_B: Tensor, order_C: Tensor | None = None) -> Batch:
    """Returns a batch of samples, which are numbered by class; sample i has the same label whenever it comes."""
    labels_B = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))[index_B]
    labels_B = labels_B if order_C is None else order_C[labels_B]
    return Batch(torch.zeros(1, len(index_B), 3, 1, 1), labels_B, index_B, torch.zeros_like(index_B))


def takes_mixtures(row: tuple[str, str]) -> bool:
    """Tells whether the row, as ``build_row`` configures it, allows mixup."""
    kind, name = row
    return method(*row).label_mix if kind == "base" else not method(*row).mix_refusal(term_config(name))


def mixed(batch: Batch) -> Batch:
    """Returns rows 2k and 2k + 1 mixed with each other; their shares are a function of the two samples."""
    partner_B = torch.arange(len(batch)) ^ 1
    index_B = batch.index_B[partner_B]
    lam_B = (batch.index_B + index_B) % 7 / 7.0
    return replace(batch, mix=Mix(batch.labels_B[partner_B], lam_B, index_B))


def output_of(objective: Objective, index_B: Tensor, epoch: int = 0, order_C: Tensor | None = None) -> ModelOutput:
    """Returns a float64 output with gradient, a function of (sample, epoch) alone, with the fields that the objective needs."""
    experts = (EXPERTS,) if objective.base.expert_head else ()

    def draw(what: str, *shape: int) -> Tensor:
        return torch.randn(SAMPLES, *shape, generator=generator(epoch, what), dtype=torch.float64)[index_B]

    def numbered(logits: Tensor) -> Tensor:
        found = logits if order_C is None else torch.zeros_like(logits).index_copy(-1, order_C, logits)
        return found.requires_grad_()

    needs = objective.needs

    def unit(what: str) -> Tensor:
        return torch.nn.functional.normalize(draw(what, PROJECTION), dim=1)

    second = ModelOutput(
        logits_BC=numbered(2 * draw("second logits", CLASSES)),
        features_BD=draw("second features", FEATURES),
        query_Bd=unit("second query").requires_grad_(),
    )
    return ModelOutput(
        logits_BC=numbered(2 * draw("logits", *experts, CLASSES)),
        features_BD=draw("features", FEATURES).requires_grad_(),
        fmap_BDhw=draw("fmap", FEATURES, SIDE, SIDE) if "fmap" in needs else None,
        query_Bd=unit("query").requires_grad_() if "query" in needs else None,
        key_Bd=unit("key") if {"query", "key"} <= needs else None,
        stage_features_BD={n: draw(n, dim).requires_grad_() for n, dim in STAGES.items() if n in needs} or None,
        stage_fmaps_BDhw={n: draw(MAP + n, dim, 2 * SIDE, 2 * SIDE) for n, dim in STAGES.items() if MAP + n in needs}
        or None,
        own_query_Bd=unit("own query").requires_grad_() if "own_query" in needs else None,
        own_key_Bd=unit("own key") if "own_query" in needs else None,
        key_features_BD=draw("key features", FEATURES) if "key" in needs else None,
        twin_logits_BC=numbered(2 * draw("twin logits", CLASSES)) if "twin" in needs else None,
        second=second if "second" in needs else None,
    )


def tensors(out: ModelOutput) -> dict[str, Tensor]:
    """Returns every tensor of the output, by the name of its field or stage."""
    whole = {f.name: getattr(out, f.name) for f in fields(out) if f.name not in NESTED}
    maps = {MAP + name: fmap for name, fmap in (out.stage_fmaps_BDhw or {}).items()}
    second = {} if out.second is None else {SECOND + name: t for name, t in tensors(out.second).items()}
    return {n: t for n, t in (whole | dict(out.stage_features_BD or {}) | maps | second).items() if t is not None}


def with_tensors(out: ModelOutput, changed: dict[str, Tensor]) -> ModelOutput:
    """Returns the output with some of ``tensors`` replaced."""
    stages = {name: changed.get(name, t) for name, t in (out.stage_features_BD or {}).items()}
    maps = {name: changed.get(MAP + name, t) for name, t in (out.stage_fmaps_BDhw or {}).items()}
    whole = {name: t for name, t in changed.items() if name not in stages and not name.startswith((MAP, SECOND))}
    of_second = {name.removeprefix(SECOND): t for name, t in changed.items() if name.startswith(SECOND)}
    second = None if out.second is None else with_tensors(out.second, of_second)
    return replace(out, **whole, stage_features_BD=stages or None, stage_fmaps_BDhw=maps or None, second=second)


def my_rows(index_B: Tensor) -> Tensor:
    """Returns this rank's share of a global batch."""
    return index_B.chunk(dist.world())[dist.rank()]


def fill(
    objective: Objective,
    order_C: Tensor | None = None,
    merges: tuple[float, ...] = (0.5, 0.85),
    *,
    samples: int = SAMPLES,
    change: Callable[[str, Tensor], Tensor] = lambda _name, tensor: tensor,
) -> Objective:
    """Makes one toy epoch over the first ``samples`` samples before each merge, in batches of 12 over all ranks.

    ``change(name, tensor)`` is what the memories see of a tensor of the output.
    """
    for epoch, progress in enumerate(merges):
        order = torch.randperm(samples, generator=generator(epoch, "order"))
        for index_B in order.split(12):
            mine = my_rows(index_B)
            out = output_of(objective, mine, epoch, order_C)
            out = with_tensors(out, {name: change(name, tensor.detach()) for name, tensor in tensors(out).items()})
            objective.observe(out, batch_of(mine, order_C), progress)
        objective.merge(progress)
    return objective


State = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Published and pending tensors of a memory."""


def partly_filled(row: tuple[str, str]) -> Objective:
    """Makes two merges and then half an epoch, so that something is published and something pending."""
    objective = fill(build_row(*row))
    for index_B in torch.arange(SAMPLES // 2).split(12):
        mine = my_rows(index_B)
        objective.observe(output_of(objective, mine, 5), batch_of(mine), 0.87)
    return objective


def copies(memory: Memory) -> State:
    """Returns copies of what a memory published, and of what is pending."""
    return (
        {name: tensor.clone() for name, tensor in memory.published().items()},
        {name: tensor.clone() for name, tensor in memory.pending().items()},
    )


@dataclass
class Result:
    """What a loss came to."""

    loss: Tensor
    grads: dict[str, Tensor]
    parts: dict[str, Tensor]


def evaluate(objective: Objective, out: ModelOutput, batch: Batch, progress: float = PROGRESS) -> Result:
    """Computes the loss and its gradients by the fields of the output and the parameters of the objective."""
    inputs = tensors(out) | dict(objective.named_parameters())
    wanted = {name: t for name, t in inputs.items() if t.requires_grad}
    found = objective(out, batch, progress)
    grads = torch.autograd.grad(found.loss, list(wanted.values()), allow_unused=True)
    return Result(
        found.loss.detach(),
        {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(wanted.items(), grads, strict=True)},
        found.parts,
    )


def run(objective: Objective, index_B: Tensor, order_C: Tensor | None = None) -> Result:
    """Computes loss and gradients of some samples."""
    return evaluate(objective, output_of(objective, index_B, 7, order_C), batch_of(index_B, order_C))


def run_mixed(objective: Objective, index_B: Tensor) -> Result:
    """Does the same as ``run``, but the images are mixed with their neighbors."""
    return evaluate(objective, output_of(objective, index_B, 7), mixed(batch_of(index_B)))


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    """Refuses tensors that differ."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def ragged() -> Tensor:
    """Returns 12 samples of several classes, in no order; some with one sample, some absent."""
    return torch.tensor([14, 0, 13, 1, 40, 25, 33, 2, 55, 61, 70, 71])
