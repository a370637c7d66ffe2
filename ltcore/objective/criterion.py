"""Our losses in other people's loops: one module that takes logits, labels and what else a loss needs.

Shapes are those of ``ltcore.batch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltcore.batch import Batch, Mix, ModelOutput
from ltcore.errors import CheckpointError, ConfigError
from ltcore.objective.embedding import POOLED
from ltcore.objective.interface import Term
from ltcore.objective.objective import make_objective
from ltcore.objective.registry import TERMS

OUTPUTS = tuple(field.name for field in fields(ModelOutput) if field.name not in ("logits_BC", "features_BD"))
"""Outputs of a network that some losses need besides logits and features, by the names under which they are given."""
MAP = "fmap/"
"""Begins the need of a stage's feature map (``ltcore.objective.interface.NEEDS``)."""
MOST_FORWARDS = 64
"""Batches that are kept for ``step``. More than anybody accumulates: ``step`` is never called, and memories never filled."""


class Criterion(nn.Module):
    """Computes any base loss with any terms in a training loop of your own, as ``ltcore train`` does, to the bit.

    ``feature_dim`` is D, ``stage_dims`` the same of earlier stages; ``terms``, ``stream_counts``, ``projection_dim``, ``seed``
    and ``base_options`` are those of ``ltcore.make_objective``. ``total_steps`` are the optimizer steps of the training, from
    which terms know when to begin; without it, set ``progress`` yourself. In a plain loop::

        net = timm.create_model("test_resnet", num_classes=len(counts))
        criterion = ltcore.Criterion("balanced_softmax", class_counts=counts, feature_dim=net.num_features,
                                     terms={"dro": {"start": 0.2}}, total_steps=epochs * len(loader))
        optimizer = torch.optim.SGD([*net.parameters(), *criterion.parameters()], lr=0.01, momentum=0.9)
        for epoch in range(epochs):
            for images, labels in loader:
                features = net.forward_head(net.forward_features(images), pre_logits=True)
                loss = criterion(net.get_classifier()(features), labels, features)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                criterion.step()
            criterion.epoch_end()

    In a Lightning module::

        class Classifier(lightning.LightningModule):
            def __init__(self, counts, steps):
                super().__init__()
                self.net = timm.create_model("test_resnet", num_classes=len(counts))
                self.criterion = ltcore.Criterion("balanced_softmax", class_counts=counts, total_steps=steps,
                                                  feature_dim=self.net.num_features, terms={"dro": {"start": 0.2}})
            def training_step(self, batch, number):
                features = self.net.forward_head(self.net.forward_features(batch[0]), pre_logits=True)
                return self.criterion(self.net.get_classifier()(features), batch[1], features)
            def on_train_batch_end(self, *_): self.criterion.step()
            def on_train_epoch_end(self): self.criterion.epoch_end()
            def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    Compiled, ``criterion.compile()`` makes one graph of the losses, whatever backend and mode it is given. The network may be
    compiled by itself, or both in one function without a break, where the memories' input is taken along::

        @torch.compile(fullgraph=True)
        def loss_of(images, labels):
            features = net.forward_head(net.forward_features(images), pre_logits=True)
            return criterion(net.get_classifier()(features), labels, features)

    ``step`` and ``epoch_end`` stay outside: inside they would break the graph. It is compiled once more in the second step,
    which makes the progress a variable, and where a term, a milestone or what a memory publishes first begins to act; torch
    gives up after ``torch._dynamo.config.recompile_limit`` times. With several forwards per ``step`` each of them would be a
    graph of such a function: compile network and criterion by themselves then.

    ``state_dict`` holds memories and progress as well. With several ranks each has its own part of what was observed since
    ``epoch_end``, so save after it. ``ldam`` and ``ride`` take the logits of a cosine head, times their ``scale``.

    Raises ConfigError for an unknown name, and where a size is missing; ValueError and TypeError as ``make_objective``.
    """

    def __init__(
        self,
        base: str = "cross_entropy",
        *,
        class_counts: Sequence[int],
        feature_dim: int | None = None,
        terms: Mapping[str, Mapping[str, Any]] | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        stream_counts: Sequence[float] | None = None,
        projection_dim: int = 32,
        stage_dims: Mapping[str, int] | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__()
        if total_steps is not None and total_steps < 1:
            raise ConfigError(f"total_steps={total_steps}: expected the optimizer steps of the training, >= 1.")
        self.objective = make_objective(
            base,
            terms,
            class_counts=class_counts,
            stream_counts=stream_counts,
            features=feature_dim or 0,
            projection=projection_dim,
            stages=stage_dims,
            seed=seed,
            **base_options,
        )
        self.total_steps = total_steps
        self.parts: dict[str, Tensor] = {}
        """Of the last loss: detached, 'base' and one per term, before their weights."""
        self._steps, self._progress = 0, None if total_steps is None else 0.0
        self._seen: list[tuple[ModelOutput, Batch, float]] = []
        self._required = self._arguments()
        sized = {"features_BD", "fmap_BDhw", "key_features_BD"} & {name for name, _ in self._required}
        if sized and feature_dim is None:
            raise ConfigError(f"{self._who()} needs {' and '.join(sorted(sized))}: give their length as feature_dim.")

    @property
    def progress(self) -> float:
        """Returns the fraction of training done, in [0, 1]; may be set where there is no ``total_steps``."""
        return self._progress or 0.0

    @progress.setter
    def progress(self, value: float) -> None:
        if self.total_steps is not None:
            raise ConfigError(
                f"progress={value} would contradict total_steps={self.total_steps}, which counts the steps."
            )
        if not 0 <= value <= 1:
            raise ConfigError(f"progress={value}: expected the fraction of training done, in [0, 1].")
        self._progress = float(value)

    def forward(
        self,
        logits_BC: Tensor,
        labels_B: Tensor,
        features_BD: Tensor | None = None,
        *,
        indices_B: Tensor | None = None,
        mix: Mix | None = None,
        **outputs: Any,
    ) -> Tensor:
        """Returns the loss, a scalar whose mean over ranks is the loss of the global batch.

        ``indices_B`` are the numbers of the samples, 0 to N - 1; ``mix`` the second image of mixed ones; ``outputs`` are other
        fields of ``ltcore.ModelOutput``. In training mode it also notes what ``step`` passes to the memories.

        Raises ValueError that names what a loss needs and was not given.
        """
        self._check(logits_BC, labels_B, mix)
        given = {"features_BD": features_BD, "indices_B": indices_B, **outputs}
        if unknown := sorted(outputs.keys() - set(OUTPUTS)):
            raise TypeError(f"unknown argument {unknown[0]!r}: expected among {', '.join(OUTPUTS)}")
        for name, key in self._required:
            value = given.get(name)
            if value is None or (key is not None and key not in value):
                what = name if key is None else f"{name}[{key!r}]"
                raise ValueError(f"{self._who()} needs {what}, which was not given: pass criterion(..., {name}=...)")
        # What nobody reads, and so was not required, is None or empty.
        out = ModelOutput(logits_BC, features_BD, **outputs)  # type: ignore[arg-type]
        zeros_B = torch.zeros_like(labels_B)
        index_B = zeros_B if indices_B is None else indices_B
        batch = Batch(logits_BC.new_zeros(1, len(labels_B), 3, 0, 0), labels_B, index_B, zeros_B, mix)
        found = self.objective(out, batch, self.progress)
        self.parts = found.parts
        if self.training and self.objective.memories():
            self._note(out, batch)
        return found.loss

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the losses in place, with the arguments of ``torch.compile``.

        What is noted for ``step`` stays outside of the graph, which then does not depend on how often that is called.
        """
        self.objective.compile(*args, **options)

    def _note(self, out: ModelOutput, batch: Batch) -> None:
        if len(self._seen) == MOST_FORWARDS:
            raise RuntimeError(
                f"{self._who()} learns from every batch, and {MOST_FORWARDS} were computed without criterion.step(): call it "
                "after each optimizer step, and criterion.eval() before validation"
            )
        self._seen.append((out.detached(), batch, self.progress))

    @torch.no_grad()
    def step(self) -> None:
        """Passes the batches since the last call to the memories; to be called after every optimizer step."""
        for out, batch, progress in self._seen:
            self.objective.observe(out, batch, progress)
        self._seen.clear()
        self._steps += 1
        if self.total_steps is not None:
            self._progress = min(self._steps / self.total_steps, 1.0)

    def epoch_end(self) -> None:
        """Publishes what the memories observed; to be called after every epoch, on every rank."""
        self.objective.merge(self.progress)

    # ---- checks

    def _check(self, logits_BC: Tensor, labels_B: Tensor, mix: Mix | None) -> None:
        base, num_classes = self.objective.base, self.objective.stats.num_classes
        if logits_BC.shape[-1] != num_classes or logits_BC.dim() != (3 if base.expert_head else 2):
            shape = f"[B, E, {num_classes}] of several experts" if base.expert_head else f"[B, {num_classes}]"
            raise ValueError(f"{self._who()} takes logits {shape}, got shape {tuple(logits_BC.shape)}")
        if labels_B.shape != logits_BC.shape[:1] or labels_B.dtype != torch.int64:
            raise ValueError(
                f"labels_B must be int64 class numbers [{len(logits_BC)}], one for each row of the logits, got "
                f"{labels_B.dtype} {tuple(labels_B.shape)}"
            )
        if mix is None and base.pairs:
            raise ValueError(
                f"{self._who()} takes pairs of images: give the second ones as mix=Mix(labels, share, indices)"
            )
        for refusal in self._mix_refusals() if mix is not None else ():
            raise ValueError(f"{self._who()} does not take mixed images: {refusal}")
        if self._progress is None and self._follows_progress():
            raise ValueError(
                f"{self._who()} follows the progress of training: give Criterion(total_steps=...), or set criterion.progress, "
                "from 0 to 1, before each step"
            )

    def _mix_refusals(self) -> Iterator[str]:
        base, terms = self.objective.base, self.objective.cfg.active_terms()
        if not base.label_mix and not base.pairs:
            yield "the base is not a function of one label"
        yield from filter(None, (TERMS[name].build.mix_refusal(cfg) for name, cfg in terms.items()))

    def _follows_progress(self) -> bool:
        return bool(self.objective.cfg.active_terms()) or getattr(self.objective.base.cfg, "drw_start", 0.0) > 0

    def _who(self) -> str:
        return " + ".join([self.objective.cfg.base, *self.objective.cfg.active_terms()])

    def _arguments(self) -> list[tuple[str, str | None]]:
        """Returns the arguments of ``forward`` that a loss reads, each with the stage where it is one of several."""
        needs, terms = self.objective.needs, self.objective.cfg.active_terms()
        pooled = any(getattr(cfg, "embedding", None) == POOLED for cfg in terms.values())
        reads = {what for term in self.objective.terms.values() for what in cast(Term, term).reads}
        found: list[tuple[str, str | None]] = [
            (name, None)
            for name, asked in [
                ("features_BD", "features" in reads),
                ("indices_B", "index" in reads),
                ("fmap_BDhw", "fmap" in needs),
                ("query_Bd", "query" in needs),
                ("own_query_Bd", "own_query" in needs),
                ("key_Bd", {"key", "query"} <= needs),
                ("own_key_Bd", {"key", "own_query"} <= needs),
                ("key_features_BD", "key" in needs and pooled),
                ("twin_logits_BC", "twin" in needs),
                ("second", "second" in needs),
            ]
            if asked
        ]
        stages = sorted(need for need in needs if need.removeprefix(MAP).startswith("stage"))
        return found + [
            ("stage_fmaps_BDhw" if stage.startswith(MAP) else "stage_features_BD", stage.removeprefix(MAP))
            for stage in stages
        ]

    # ---- state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Criterion:
        """Follows the network to another device, but not to another number type: losses are float32, or what they need."""
        here = self.objective.stats_device
        self.objective.to_device(fn(torch.empty(0, device=here)).device)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Returns copies of the memories, and the progress, for ``state_dict``."""
        return {
            "steps": self._steps,
            "progress": self._progress,
            "memories": {
                name: {
                    "published": {key: value.clone() for key, value in memory.published().items()},
                    "pending": {key: value.clone() for key, value in memory.pending().items()},
                }
                for name, memory in self.objective.memories().items()
            },
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what ``get_extra_state`` returned. Raises CheckpointError where it is that of other losses."""
        memories, saved = self.objective.memories(), state["memories"]
        if memories.keys() != saved.keys():
            raise CheckpointError(
                f"The state of a criterion with the memories {', '.join(saved) or 'none'} does not fit {self._who()}, which has "
                f"{', '.join(memories) or 'none'}. Build the criterion as it was saved."
            )
        for name, memory in memories.items():
            memory.load(saved[name]["published"], [saved[name]["pending"]])
        self._steps, self._progress = state["steps"], state["progress"]
