"""The objective: base loss + named terms + the memories they declare.

    L = mean_i( w_i * base_i ) + sum_t weight_t * term_t

``w_i`` is the product of the sample weights of the terms that have any (IFL's environments). A term that is off is not
built, so it changes neither a number nor a random state. Everything runs in float32 with autocast off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.batch import Batch, ModelOutput
from ltcore.errors import one_of, pick
from ltcore.objective.dims import FeatureDims
from ltcore.objective.interface import Base, LossContext, Shared, Term
from ltcore.objective.memory.base import Memory
from ltcore.objective.registry import BASES, TERMS, BaseOptions, Terms
from ltcore.plugins.loading import load_part
from ltcore.shots import shot_groups_by_count
from ltcore.stats import ClassStats
from ltcore.text import counted

LEXICOGRAPHIC = "lexicographic_compat"
PRIORS = ("stream", "dataset", LEXICOGRAPHIC)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training objective: a base loss and additional terms."""

    base: str = "cross_entropy"
    """Name of the base loss (``ltcore methods``)."""
    base_options: BaseOptions = field(default_factory=BaseOptions)
    """Options of each base loss. Options of a base that is not chosen have no effect and must keep their defaults."""
    terms: Terms = field(default_factory=Terms)
    """The named terms; null is off."""
    prior: str = "stream"
    """Class prior for losses that use one: 'stream' (what the model sees, after sampling and re-weighting) or 'dataset'.
    'lexicographic_compat' reproduces a mistake of GLT's published code and is only for comparison with its numbers:
    with more than ten classes the base uses the counts of other classes for prior, margins and weights. Terms are not
    affected.
    """

    def __post_init__(self) -> None:
        one_of(PRIORS, prior=self.prior)
        one_of(sorted(BASES), base=self.base)
        if self.prior == LEXICOGRAPHIC and not BASES[self.base].build.text_order_in_glt:
            known = ", ".join(name for name, row in BASES.items() if row.build.text_order_in_glt)
            raise ValueError(
                f"prior must be 'stream' or 'dataset' with base={self.base!r}, got {self.prior!r}: the mistake that it "
                f"reproduces exists only for {known}"
            )
        for name, row in BASES.items():
            if name != self.base and getattr(self.base_options, name) != row.build.Config():
                raise ValueError(
                    f"base_options.{name} has no effect with base={self.base!r}: remove it or set objective.base={name}"
                )

        for name, cfg in self.active_terms().items():
            if getattr(cfg, "spare_neighbors", False) and not BASES[self.base].build.contrasts:
                raise ValueError(
                    f"terms.{name}.spare_neighbors has no effect with base={self.base!r}, which has no negatives: remove it "
                    f"or set objective.base=paco"
                )

    def active_terms(self) -> dict[str, Any]:
        """Returns the config of every term that can contribute at some time, by name."""
        configs = {name: getattr(self.terms, name) for name in TERMS}
        return {name: cfg for name, cfg in configs.items() if cfg is not None and not TERMS[name].build.is_off(cfg)}


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of a step and its parts for logging."""

    loss: Tensor
    """Scalar with gradient. The mean over ranks is the loss of the global batch."""
    parts: dict[str, Tensor]
    """Detached scalars: 'base' and one per active term, before their weights, and additional values logged by a term as
    '<term>_<name>'. The mean over ranks is the global value, as for the loss.
    """


class Objective(nn.Module):
    """Base, terms and memories of one run. Parameters of losses are parameters of this module."""

    def __init__(self, cfg: ObjectiveConfig, stats: ClassStats, dims: FeatureDims, seed: int) -> None:
        super().__init__()
        self.cfg, self.stats = cfg, stats
        base_stats = stats.in_text_order() if cfg.prior == LEXICOGRAPHIC else stats
        self.base: Base = BASES[cfg.base].build(getattr(cfg.base_options, cfg.base), base_stats, dims)
        self._terms: dict[str, Term] = {
            name: TERMS[name].build(term_cfg, stats, dims) for name, term_cfg in cfg.active_terms().items()
        }
        self.terms = nn.ModuleDict(self._terms)  # registers parameters; ``_terms`` is the same with its type
        self._memories: dict[Any, Memory] = {}
        self._named: dict[str, dict[str, Memory]] = {}
        for name, loss in [("base", self.base), *self._terms.items()]:
            specs = loss.memories()
            for spec in specs.values():
                if spec.key not in self._memories:
                    self._memories[spec.key] = spec.build(stats, dims, seed)
            self._named[name] = {local: self._memories[spec.key] for local, spec in specs.items()}
        self._log_prior_C = base_stats.log_prior_C("stream" if cfg.prior == "stream" else "dataset", torch.float64)
        self._sampled_C = torch.zeros_like(self._log_prior_C)
        self._is_sampled = False

    @property
    def needs(self) -> frozenset[str]:
        """Returns the network outputs that base and terms require; see ``ltcore.objective.interface.NEEDS``."""
        return frozenset().union(self.base.needs, *(t.needs for t in self._terms.values()))

    def forward(self, out: ModelOutput, batch: Batch, progress: float) -> ObjectiveOutput:
        """Computes the loss of a batch. ``progress`` is the fraction of training done before this step."""
        with torch.autocast(out.logits_BC.device.type, enabled=False):
            live = self._live(progress)
            log_prior_C = self._log_prior_now(live).to(torch.promote_types(out.logits_BC.dtype, torch.float32))
            shared = Shared()

            def context(name: str) -> LossContext:
                return LossContext(self.stats, log_prior_C, progress, self._named[name], shared)

            for name, term in live.items():
                term.before_base(out, batch, context(name))
            base_B = self._base_per_sample(out, batch, context("base"))
            parts = {"base": base_B.detach().mean()}
            for name, term in live.items():
                weights_B = term.sample_weights(batch, context(name))
                if weights_B is not None:
                    base_B = base_B * weights_B
            loss = base_B.mean()
            for name, term in live.items():
                ctx = context(name)
                penalty = term(out, batch, ctx)
                parts |= {name: penalty.detach()} | {f"{name}_{what}": value for what, value in ctx.logged.items()}
                loss = loss + term.cfg.weight * penalty
            for parameter in (p for name, term in self._terms.items() if name not in live for p in term.parameters()):
                loss = loss + 0.0 * parameter.sum()  # DDP expects a gradient of every parameter
            return ObjectiveOutput(loss, parts)

    def stream_shares_C(self, progress: float) -> Tensor:
        """Returns float64 [C], the class shares of what the model sees at ``progress``.

        They sum to 1 and include the weights or draws of the terms.
        """
        changed_C = self._changed_shares(self._live(progress))
        return self.stats.log_prior_C("stream", torch.float64).exp() if changed_C is None else changed_C

    def learned_shares_C(self, progress: float) -> Tensor:
        """Returns float64 [C], the class shares that the classifier learns at ``progress``: of the stream, as the base weighs it.

        They sum to 1, and are of use where the base does not balance the classes.
        """
        return self.base.learned_shares_C(self.stream_shares_C(progress))

    def sample_classes(self, shares_C: Tensor | None) -> None:
        """Takes note of the class shares [C] of the next epoch; None where they are those of ``ClassStats``.

        To be called before every epoch by whoever samples by class; terms that change the shares themselves do not go with it
        (``Term.sampling_refusal``).
        """
        self._is_sampled = shares_C is not None
        if shares_C is not None:
            self._sampled_C.copy_(shares_C)  # a CUDA graph of the step reads it where it lies

    def may_draw(self, progress: float) -> bool:
        """Tells whether a term may answer ``draws_N`` with numbers; otherwise nobody needs the labels of all samples."""
        return any(type(term).draws is not Term.draws for term in self._live(progress).values())

    def draws_N(self, progress: float, labels_N: Tensor) -> Tensor | None:
        """Returns [N] how often each training sample should come in the next epoch; None for once each.

        The mean is 1. ``progress`` is that of the start of the epoch, ``labels_N`` are the classes of the samples.
        """
        draws = (term.draws(self._named[name], labels_N) for name, term in self._live(progress).items())
        return next((draws_N for draws_N in draws if draws_N is not None), None)

    def findings(self, labels_N: Tensor, attributes_N: Tensor) -> dict[str, float]:
        """Returns '<term>/<name>' -> value, what the terms have found of the samples' known attributes (``Term.findings``)."""
        return {
            f"{name}/{what}": value
            for name, term in self._terms.items()
            for what, value in term.findings(self._named[name], labels_N, attributes_N).items()
        }

    def _live(self, progress: float) -> dict[str, Term]:
        return {name: term for name, term in self._terms.items() if progress >= term.cfg.start}

    def _changed_shares(self, live: dict[str, Term]) -> Tensor | None:
        """Returns float64 [C] class shares, or None where neither a term nor a sampler changes them."""
        shares = (term.class_shares(self._named[name]) for name, term in live.items())
        sampled_C = self._sampled_C if self._is_sampled else None
        return next((share_C for share_C in shares if share_C is not None), sampled_C)

    def _log_prior_now(self, live: dict[str, Term]) -> Tensor:
        """Returns float64 [C]; with 'stream', the log class shares under the current sampling and sample weights."""
        share_C = self._changed_shares(live) if self.cfg.prior == "stream" else None
        return self._log_prior_C if share_C is None else share_C.log()

    def _base_per_sample(self, out: ModelOutput, batch: Batch, ctx: LossContext) -> Tensor:
        own_B = self.base(out, batch.labels_B, ctx)
        if batch.mix is None:
            return own_B
        return batch.mix.lam_B * own_B + (1 - batch.mix.lam_B) * self.base(out, batch.mix.labels_B, ctx)

    @torch.no_grad()
    def observe(self, out: ModelOutput, batch: Batch, progress: float) -> None:
        """Passes the batch to every memory, after the optimizer step."""
        for memory in self._memories.values():
            memory.observe(out, batch)
            if memory.merge_every_step:
                memory.merge(progress)

    @torch.no_grad()
    def merge(self, progress: float) -> None:
        """Merges the memories at the end of a virtual epoch, on every rank."""
        for memory in self._memories.values():
            if not memory.merge_every_step:
                memory.merge(progress)

    def memories(self) -> dict[str, Memory]:
        """Returns the memories by name, in a stable order, for checkpoints and reports."""
        names = [type(m).__name__ for m in self._memories.values()]
        return {
            f"{name}{names[:i].count(name) or ''}": m
            for i, (name, m) in enumerate(zip(names, self._memories.values(), strict=True))
        }

    @property
    def stats_device(self) -> torch.device:
        """Returns where the prior lies, and with it everything that ``to_device`` moves."""
        return self._log_prior_C.device

    def to_device(self, device: torch.device) -> Objective:
        """Moves parameters, memories, the prior and the sampled shares."""
        self.to(device)
        self._log_prior_C, self._sampled_C = self._log_prior_C.to(device), self._sampled_C.to(device)
        for memory in self._memories.values():
            memory.to(device)
        return self


def make_objective(
    base: str,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    class_counts: Sequence[int],
    stream_counts: Sequence[float] | None = None,
    features: int,
    projection: int = 32,
    stages: Mapping[str, int] | None = None,
    seed: int = 0,
    **base_options: Any,
) -> Objective:
    """Builds an objective for your own training loop, without configuration files.

    ``terms`` maps names to fields of their ``Config`` (``{"dro": {"weight": 0.5}}``), ``base_options`` are those of the
    base. ``class_counts`` [C] counts the training images of each class; ``stream_counts`` [C] are the images of each
    class that an epoch is expected to show, for samplers that repeat or leave out images; where that changes from epoch to
    epoch, call ``sample_classes`` before each. ``features`` is D, ``stages``
    the same for earlier stages whose features the output contains.

    Call the objective with the output and the batch, then ``observe`` after each optimizer step and ``merge`` after
    each epoch. With IFL's ``env_mode='repeat'``, show each sample ``draws_N`` times in the next epoch on average.

    Raises ConfigError for an unknown name, ValueError for counts of another number of classes and TypeError for an
    unknown field.
    """
    counts_C = torch.tensor(list(class_counts), dtype=torch.int64)
    load_part("loss", base)
    for name in terms or {}:
        load_part("term", name)
    chosen = pick(BASES, base, "base")
    options = BaseOptions(**{base: chosen.build.Config(**base_options)})
    configs = {name: pick(TERMS, name, "terms").build.Config(**fields) for name, fields in (terms or {}).items()}
    if stream_counts is not None and len(stream_counts) != len(class_counts):
        raise ValueError(f"stream_counts has {counted(len(stream_counts), 'class')}, class_counts {len(class_counts)}")
    stream_C = None if stream_counts is None else torch.tensor(list(stream_counts), dtype=torch.float64)
    stats = ClassStats(counts_C, shot_groups_by_count(counts_C.tolist()), stream_C)
    dims = FeatureDims(features, projection, stats.num_samples, stages or {})
    return Objective(ObjectiveConfig(base=base, base_options=options, terms=Terms(**configs)), stats, dims, seed)
