"""Optuna's TPE through Tune, told the truth about trials that the scheduler ended early."""

from __future__ import annotations

from typing import Any

from ray.tune.search.optuna import OptunaSearch


class PruneAwareSearch(OptunaSearch):
    """Ray tells Optuna that a trial stopped by ASHA is COMPLETE with its last value, as if that were the value of a full
    training, which biases the model of the objective. Here such a trial is PRUNED; its intermediate values still count.
    """

    def __init__(self, *, total_images: int, **options: Any) -> None:
        super().__init__(**options)
        self._total_images = total_images

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        reached_end = bool(result) and result.get("images_seen", 0) >= self._total_images  # type: ignore[union-attr]
        super().on_trial_complete(trial_id, result if reached_end else None, error)
