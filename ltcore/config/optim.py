"""Optimizer and learning-rate schedule of a run.

Source of the defaults: the CIFAR-LT recipe of LDAM-DRW (SGD 0.1, warm-up over 5 of 200 epochs, x 0.01 at epochs 160 and
180, weight decay 2e-4 on everything).
"""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.errors import at_least, one_of, positive, within

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule. Times are fractions of training, so the epochs can be changed alone."""

    optimizer: str = "sgd"
    """'sgd' or 'adamw'."""
    lr: float = 0.1
    """Peak learning rate, for the global batch of ``train.batch_size``, whatever the number of workers. It is changed only
    where ``train.least_batches`` makes the batch smaller, in proportion, and that is said. Range > 0."""
    backbone_lr_factor: float = 1.0
    """Rate of the backbone relative to ``lr``, which classifiers, projections and centers of losses keep. Range > 0. No effect
    in stage 2."""
    layer_decay: float | None = None
    """Factor of the rate from each layer of the backbone to the one below it, in order of depth: layer k of n, from 0 at the
    images, learns at ``lr`` * ``backbone_lr_factor`` * layer_decay^(n - k). A layer is the stem or a residual block; in timm's
    networks what timm's ``group_matcher`` says, and 12 tensors where nothing is said. null: all layers alike. Range (0, 1]. No
    effect in stage 2."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW. Range [0, 1)."""
    nesterov: bool = False
    """Nesterov's form of momentum. No effect with 'adamw'."""
    weight_decay: float = 2e-4
    """L2 penalty added to the gradient (SGD) or decoupled decay (AdamW), per step. Range >= 0."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to parameters of one dimension (normalization, biases, scales of layers) and to those
    that a timm network names in ``no_weight_decay`` (position embeddings, class tokens), as in the published CIFAR-LT code.
    """
    schedule: str = "multistep"
    """After warm-up: 'multistep' (times ``gamma`` at each milestone), 'cosine' (to 0, on the cosine that began with training),
    'cosine_after_warmup' (to 0, on one that begins at the peak, as in PaCo's code) or 'constant'. Set per epoch, unless
    ``schedule_per_step`` is."""
    schedule_per_step: bool = False
    """Whether the rate changes with every optimizer step rather than every epoch: step s (from 0) of n has the rate that epoch
    s of n would have. Warm-up then runs at lr * (s + 1) / k with k = round(warmup * n), 'cosine' at lr * (1 + cos(pi s / n)) /
    2. No effect in stage 2."""
    warmup: float = 0.025
    """Fraction of training with a rising rate: epoch e (from 0) of k = round(warmup * epochs) runs at lr * (e + 1) / k; where
    k is below 2, the rate rises with every step instead. Range [0, 1)."""
    milestones: tuple[float, ...] = (0.8, 0.9)
    """Fractions of training, rising, each in (0, 1). No effect unless ``schedule`` is 'multistep'."""
    gamma: float = 0.01
    """Factor of the rate at each milestone. Range (0, 1]. No effect unless ``schedule`` is 'multistep'."""
    clip_norm: float | str | None = AUTO
    """Largest L2 norm of the whole gradient; larger ones are scaled down. 'auto': 1 for a network with attention, no clipping
    for others. null: no clipping. Range > 0. No effect in stage 2."""

    def __post_init__(self) -> None:
        one_of(("sgd", "adamw"), optimizer=self.optimizer)
        one_of(("multistep", "cosine", "cosine_after_warmup", "constant"), schedule=self.schedule)
        positive(lr=self.lr, backbone_lr_factor=self.backbone_lr_factor)
        if self.layer_decay is not None:
            within("(0, 1]", layer_decay=self.layer_decay)
        within("[0, 1)", momentum=self.momentum)
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        at_least(0, weight_decay=self.weight_decay)
        within("[0, 1)", "a fraction of training", warmup=self.warmup)
        rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        if not rising or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones must be rising fractions of training in (0, 1), got {self.milestones}")
        within("(0, 1]", gamma=self.gamma)
        if self.clip_norm != AUTO:
            if isinstance(self.clip_norm, str):
                raise ValueError(f"clip_norm must be {AUTO}, null or a number above 0, got {self.clip_norm!r}")
            positive(clip_norm=self.clip_norm)
