"""The whole configuration of a run: the owners' dataclasses put together, plus what belongs to no component.

Frozen dataclasses; the text under a field is its documentation (``ltcore keys``). A field's check lives
beside it in ``__post_init__`` and starts its message with the field's name, so that an error can name the dotted key.
``RunConfig.from_dict`` is the only way from text to a run.

Source of the defaults of ``TrainConfig``: the CIFAR-LT recipe of LDAM-DRW (200 epochs, batch 128).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from ltcore.callbacks import Callbacks
from ltcore.config.combinations import COMPILE, check_compile, check_mixing, check_pairs, check_sampling
from ltcore.config.keys import effective, run_keys, selectable
from ltcore.config.optim import OptimConfig
from ltcore.config.overrides import flatten, override
from ltcore.config.plugged import KEY, names_of, with_plugins
from ltcore.config.stage2 import Stage2Config
from ltcore.config.sweep import SELECTABLE, SweepConfig
from ltcore.config.validate import plain_run, validate
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import stacks
from ltcore.data.config import DataConfig
from ltcore.data.loading.class_sampling import CLASS_AWARE, SAMPLINGS, SamplingOptions
from ltcore.errors import at_least, one_of, plain_name, positive, within
from ltcore.evaluation.catalog import NCM, VALIDATION
from ltcore.evaluation.plugged import MetricOptions
from ltcore.models.net import CLASS_MEANS, ModelConfig
from ltcore.models.registry import stages
from ltcore.models.tune import HEAD
from ltcore.models.weights import WEIGHT_FILES
from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import BASES, TERMS
from ltcore.plugins.generated import refuse_idle
from ltcore.plugins.loading import use
from ltcore.tracking.config import TrackingConfig
from ltcore.uris import check_uris

__all__ = ["SELECTABLE", "RunConfig", "SweepConfig", "TrackingConfig", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    epochs: int = 200
    """Passes over the training split, each in whole batches: the remainder, other images every time, is left out. Range >=
    1."""
    batch_size: int = 128
    """Images per optimizer step over all workers together. Range >= 1."""
    least_batches: int | None = None
    """Batches that the training images should fill in an epoch. Where they are too few, ``batch_size`` and ``optim.lr`` are
    halved together until they do, down to 8 images, and it is said. null: never. No effect beside a batch size on the
    command line. Range >= 1."""
    accumulate: int = 1
    """Backward passes per optimizer step, each over batch_size / accumulate images, to fit into memory. Must divide
    ``batch_size``; refused for losses that look across the batch."""
    sampling: str = "natural"
    """How often images of a class come: 'natural' (every image once per epoch), 'class_balanced' (all classes equally often),
    'class_aware' (as often, in runs of ``images_per_class``), 'square_root' (in proportion to the square root of their sizes)
    or 'progressive' (natural in the first epoch, balanced in the last, in equal steps between). An epoch keeps its number of
    images: those of small classes are repeated, and some of large ones left out. Priors of losses are those of this stream
    (``objective.prior``). 'class_aware' reads all over the data in each step, which suits ``data.loader=cache``. Plugins may
    have others. No effect in stage 2."""
    sampling_options: SamplingOptions = field(default_factory=SamplingOptions)
    """Options of samplers of plugins, under their names."""
    images_per_class: int = 4
    """Images in a row of one class with ``sampling=class_aware``: a batch of 128 then has 32 classes with 4 images each, as
    in DRO-LT. Must divide ``batch_size``. Range >= 1. No effect with other samplings."""
    init_from: str | None = None
    """Whose network weights the run starts with: a run directory (its best checkpoint on validation, else its last) or a
    checkpoint in it, as an absolute path or URI. Network and classes must be the same; updates of its ``model.tune=lora`` are
    added to its weights. null: as ``model.weights`` says."""
    freeze: str | None = None
    """'classifier' keeps the classifier as ``init_from`` gave it and trains the features under it, as DRO-LT's second
    stage does. null: everything is trained."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    precision: str = "auto"
    """'fp32', 'bf16' (autocast; losses stay fp32), 'fp16' (likewise, with a loss scaler, for GPUs without bf16: a step
    whose gradient overflows is left out, and train/skipped_steps counts them; refused on a CPU) or 'auto': bf16 where the
    processor computes in it, else fp32, never fp16."""
    grad_checkpointing: bool = False
    """Whether activations inside of residual blocks are computed again in the backward pass instead of kept: less memory, about
    a third more time, the same result. Refused for networks that cannot. No effect in stage 2."""
    compile: str = "off"
    """Whether forward, loss and backward of a step are compiled by torch: 'off', 'default' or 'reduce-overhead' (also the
    optimizer's update without a scaler, and all of these are replayed as CUDA graphs; refused on a CPU and with
    ``accumulate``). Numbers differ in their last digits. The first steps, and those in which a term begins, take up to minutes
    longer. Needs a C++ compiler on every worker, and on a GPU Triton. Augmentation and evaluation are not compiled, nor is
    what ``--dry-run`` measures. No effect in stage 2."""
    threads: int | None = None
    """CPU threads of torch in each worker; results are bitwise repeatable for one number of threads. null: the CPUs
    that the worker was given, and no more than affinity and cgroup allow; a run in the process that was started keeps to a
    smaller OMP_NUM_THREADS too. Ray's processes do not: Ray sets that variable itself. Range >= 1."""
    ema_decay: float = 0.0
    """Decay per step of an averaged copy of the network that is evaluated in its place. Range [0, 1); 0 is off."""
    eval_every: int = 1
    """Epochs between evaluations on the validation split; the last epoch is always evaluated. Range >= 1."""
    eval_batch_size: int = 512
    """Images per evaluation batch on each worker; metrics do not depend on it. Range >= 1."""
    checkpoint_every_s: float | None = None
    """Seconds between checkpoints; one is also written for the best epoch, at the end of the run, and where a node is about to
    be taken away. null: as often as saving takes 1 % of the time, and not within 30 s of the last. Range > 0."""
    select: str = "val/balanced_accuracy"
    """Validation metric whose best value marks the best checkpoint: val/balanced_accuracy (the mean recall of the classes;
    top-1 where they have as many images), val/top1, val/top5, val/macro_f1, val/macro_precision, val/glt_f1,
    val/geometric_mean, val/harmonic_mean, val/worst_class, val/ece, and val/<group>, val/<group>/macro_precision and
    val/<group>/ece of many, medium and few. Features under a frozen or biased classifier are judged by what the nearest class
    mean predicts from them: val/ncm_balanced_accuracy, val/ncm_top1 and val/ncm_<group>, not in stage 2. Metrics of plugins
    are val/<name>. The lowest ECE is the best, of all others the highest value."""
    ncm: bool = False
    """Whether every validation, and the tests, also give the metrics of the nearest class mean (ncm_top1 and others), at the
    cost of a pass over the training images each. On without this key: in both where ``select`` is one of them, and in tests
    where the objective has DRO."""
    patience: int | None = None
    """Evaluations in a row without a better ``select`` after which the run ends as finished; learning rate and terms still
    follow ``epochs``. null: trains all epochs. Range >= 1; needs a validation split. No effect in stage 2."""
    min_delta: float = 0.0
    """By how much ``select`` (0.01 is one percentage point) has to improve on the last value that counted, to count as better
    for ``patience``. Range [0, 1). No effect without ``patience``, nor on which checkpoint is the best."""

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate, threads=self.threads)
        at_least(1, patience=self.patience)
        within("[0, 1)", min_delta=self.min_delta)
        at_least(1, eval_every=self.eval_every, eval_batch_size=self.eval_batch_size)
        at_least(1, least_batches=self.least_batches)
        positive(checkpoint_every_s=self.checkpoint_every_s)
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} must divide batch_size={self.batch_size}")
        check_uris(init_from=self.init_from)
        if self.init_from is not None and not (self.init_from.startswith(("/", "~")) or "://" in self.init_from):
            raise ValueError(
                f"init_from must be an absolute path or a URI, because workers change directory, got {self.init_from!r}"
            )
        if self.freeze not in (None, "classifier"):
            raise ValueError(f"freeze must be classifier or null, got {self.freeze!r}")
        if self.init_from is not None and self.init_from.endswith(WEIGHT_FILES):
            raise ValueError(
                f"init_from={self.init_from} is a file of weights, expected a run or checkpoint directory. Give the file as "
                "model.weights"
            )
        if self.freeze and self.init_from is None:
            raise ValueError(
                "freeze=classifier needs init_from with a run or checkpoint: a random classifier would never learn anything"
            )
        within("[0, 1)", ema_decay=self.ema_decay)
        one_of(("auto", "fp32", "bf16", "fp16"), precision=self.precision)
        one_of(COMPILE, compile=self.compile)
        one_of(SAMPLINGS, sampling=self.sampling)
        refuse_idle(self.sampling_options, (self.sampling,), "train.sampling")
        at_least(1, images_per_class=self.images_per_class)
        if self.sampling == CLASS_AWARE and self.batch_size % self.images_per_class:
            raise ValueError(f"images_per_class={self.images_per_class} must divide batch_size={self.batch_size}")
        one_of(selectable(), select=self.select)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: everything that determines its result, and nothing about where it is computed."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Name of the run: directory and W&B run. Letters, digits, '.', '_' and '-'."""
    seed: int = 0
    """Seed of parameters, data order and augmentation. Range >= 0. The long-tailed subset has ``data.subset_seed``."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which images, and how they are read."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images on the device."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Backbone and head."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is minimized."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where it is logged."""
    stage2: Stage2Config | None = None
    """Decoupled training: this run replaces the classifier of another one. null: it is an ordinary run."""
    plugins: tuple[str, ...] = ()
    """Modules with parts of your own, such as ``my_package.my_terms``, whose names are then as good as those of ``ltcore
    methods``. Runs keep them with their versions (``my_package.my_terms==0.3``; without a distribution a hash of the
    sources), and are continued and evaluated with these alone. Modules with entry points need not be named."""
    metrics: MetricOptions = field(default_factory=MetricOptions)
    """Options of metrics of plugins, under their names."""
    callbacks: Callbacks = field(default_factory=Callbacks)
    """Callbacks of plugins, each null or a section: they read a run, log columns of their own, and may end it."""

    def __post_init__(self) -> None:
        plain_name(name=self.name)
        at_least(0, seed=self.seed)
        stacks(self.augment, 2)  # refuses names that are none
        self._check_accumulation()
        self._check_ghost_batch()
        check_mixing(self.augment, self.objective, self.train.sampling)
        check_pairs(self.model.bilateral, self.train.sampling, self.objective)
        check_sampling(self.train.sampling, self.objective)
        check_compile(self.train.compile, self.train.accumulate, self.objective)
        self._check_experts()
        self._check_head()
        self._check_layers()
        self._check_frozen()
        self._check_weights()
        self._check_stage2()

    @property
    def epochs(self) -> int:
        """Returns the number of epochs that this run itself trains."""
        return self.train.epochs if self.stage2 is None else self.stage2.rounds

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> RunConfig:
        """Makes a validated run from a tree of plain values, as ``to_dict`` returns it."""
        tree = with_plugins(tree)
        return validate(cls, run_keys(), tree)

    @classmethod
    def from_flat(cls, keys: Mapping[str, Any]) -> RunConfig:
        """Makes a validated run from all its dotted keys, as ``to_flat`` returns them, also in another version."""
        use(names_of(keys.get(KEY)))
        return cls.from_dict(override({}, effective(keys)))

    def replace(self, overrides: Mapping[str, Any]) -> RunConfig:
        """Sets dotted keys and validates the run again."""
        use(names_of(overrides.get(KEY)))
        return self.from_dict(override(self.to_dict(), overrides))

    def to_dict(self) -> dict[str, Any]:
        """Returns the run as plain JSON values; without ``stage2`` where there is none."""
        return plain_run(self)

    def to_flat(self) -> dict[str, Any]:
        """Returns dotted key -> scalar, of all keys that have an effect.

        Lists are written as ``a,b``, and a term that is off as one null.
        """
        return effective(flatten(self.to_dict()))

    def to_yaml(self) -> str:
        """Returns YAML text that reads back as the same run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)

    def _check_accumulation(self) -> None:
        if self.train.accumulate == 1:
            return
        base, terms = self.objective.base, self.objective.active_terms()
        options = getattr(self.objective.base_options, base)
        across = [f"objective.base={base}"] if BASES[base].build.gathers(options) else []
        across += [f"objective.terms.{name}" for name, cfg in terms.items() if TERMS[name].build.gathers(cfg)]
        if across:
            summed = getattr(options, "weight_norm", None) == "batch_sum"
            also = f", or objective.base_options.{base}.weight_norm=batch" if summed else ""
            raise ValueError(
                f"train.accumulate={self.train.accumulate} would change the value of {' and '.join(across)}, which "
                "compares the samples of a whole batch with each other, or divides by a sum over them. Set "
                f"train.accumulate=1 and, if memory is short, a smaller train.batch_size or more workers{also}"
            )

    def _check_ghost_batch(self) -> None:
        at_once, group = self.train.batch_size // self.train.accumulate, self.model.ghost_batch
        if group is not None and at_once % group:
            raise ValueError(
                f"model.ghost_batch={group} must divide the {at_once} images of a pass (train.batch_size / "
                "train.accumulate), and with several workers those of each"
            )

    def _check_experts(self) -> None:
        wants_experts = BASES[self.objective.base].build.expert_head
        if wants_experts and self.model.num_experts == 1:
            raise ValueError(
                f"model.num_experts=1 does not go with objective.base={self.objective.base}, which needs several "
                "experts. Set model.num_experts=3"
            )
        if not wants_experts and self.model.num_experts > 1:
            raise ValueError(
                f"model.num_experts={self.model.num_experts} does not go with objective.base={self.objective.base}, "
                "which takes one vector of logits. Set model.num_experts=1 or choose a base for experts"
            )
        exactly = BASES[self.objective.base].num_experts
        if exactly is not None and self.model.num_experts != exactly:
            raise ValueError(
                f"model.num_experts={self.model.num_experts} does not go with objective.base={self.objective.base}, "
                f"which has one loss for each of {exactly} experts. Set model.num_experts={exactly}"
            )

    def _check_head(self) -> None:
        if self.stage2 is not None:
            return  # the head is no longer that of the base, which has done its work
        base = self.objective.base
        scale = BASES[base].build.cosine_scale(getattr(self.objective.base_options, base))
        if scale is not None and (self.model.head != "cosine" or self.model.cosine_scale != scale):
            raise ValueError(
                f"model.head={self.model.head} with model.cosine_scale={self.model.cosine_scale:g} does not go with "
                f"objective.base={base}, whose margins are made for cosines times {scale:g}. Set model.head=cosine and "
                f"model.cosine_scale={scale:g}"
            )

    def _check_layers(self) -> None:
        for name, cfg in self.objective.active_terms().items():
            asked = [layer for layer in getattr(cfg, "layers", None) or () if layer != "final"]
            known = (
                "final",
                *(stages(self.model.name, self.model.weights) if asked else ()),
            )  # of timm's it takes a second
            unknown = [layer for layer in asked if layer not in known]
            if unknown:
                raise ValueError(
                    f"objective.terms.{name}.layers={','.join(cfg.layers)} does not go with model.name={self.model.name}, "
                    f"which has no layer {unknown[0]!r}. Choose among {', '.join(known)}"
                )

    def _check_frozen(self) -> None:
        base = self.objective.base
        if self.train.freeze and self.model.tune == HEAD:
            raise ValueError(
                f"train.freeze={self.train.freeze} does not go with model.tune={HEAD}, which trains nothing but the classifier. "
                "Set train.freeze=null, or model.tune to what should be trained"
            )
        if self.train.freeze and BASES[base].build.learns_centers:
            raise ValueError(
                f"train.freeze={self.train.freeze} does not go with objective.base={base}, which contrasts images with the "
                "rows of the classifier as its learnable centers. Set train.freeze=null"
            )
        if self.train.freeze and self.model.head_init == CLASS_MEANS:
            raise ValueError(
                f"model.head_init={CLASS_MEANS} does not go with train.freeze={self.train.freeze}, which keeps the classifier of "
                "train.init_from. Set model.head_init=random or train.freeze=null"
            )

    def _check_weights(self) -> None:
        if self.train.init_from is not None and self.model.weights is not None:
            raise ValueError(
                f"model.weights={self.model.weights} would have no effect beside train.init_from={self.train.init_from}, which "
                "brings all weights. Set one of them to null"
            )

    def _check_stage2(self) -> None:
        if self.stage2 is not None and self.train.select.startswith(VALIDATION + NCM):
            raise ValueError(
                f"train.select={self.train.select} does not go with stage2, whose features never change: every round would be as "
                "good. Choose a metric of the classifier, such as val/balanced_accuracy"
            )
        if self.stage2 is not None and (reason := self.stage2.refusal(self.objective, self.model.head)):
            raise ValueError(reason)
