"""Classifier stage of DRO-LT: the classifier of stage 1 continues training on a balanced stream, with features frozen.

Source: the authors' code of Samuel and Chechik, "Distributional robustness loss for long-tail learning", ICCV 2021: 20
epochs at a constant learning rate of 0.01, plain cross-entropy, class-aware stream, no re-initialization.
Differs: see ``ltcore.objective.stage2.method``; the authors choose the epoch on the test set.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.objective.stage2.method import ClassAware, ClassAwareConfig


class DroClassifier(ClassAware):
    """The classifiers of stage 1, trained further at a small learning rate."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ClassAwareConfig):
        epochs: int = 20
        lr: float = 0.01
        weight_decay: float = 1e-4
        schedule: str = "constant"
