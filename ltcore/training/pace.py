"""How often a run saves: what a lost node costs stays in proportion to what guarding against it costs."""

from __future__ import annotations

import time

SAVE_AGAIN_S = 30.0
"""After a checkpoint that was left out, time to the next attempt."""
MOST_SAVING_FRACTION = 0.01
"""Share of the time that checkpoints take at most where ``train.checkpoint_every_s`` leaves their number open."""
LEAST_BETWEEN_SAVES_S = 30.0
"""Small networks are saved in milliseconds, but each copy to an object store is requests that are paid for."""


MOST_BETWEEN_SAVES_S = 1800.0
"""One checkpoint that had to wait for a full disk or a store says nothing of what the next one costs."""


class SavePace:
    """When the last checkpoint was saved, and what checkpoints take."""

    def __init__(self, every_s: float | None) -> None:
        """Begins now; ``every_s`` is ``train.checkpoint_every_s``."""
        self._chosen_s = every_s
        self.saved_at = time.monotonic()
        self.save_s = 0.0
        """Seconds that the last checkpoint took."""
        self.saving_s = 0.0
        """Seconds that checkpoints took since the last epoch was reported."""

    @property
    def late(self) -> bool:
        """Tells whether the last checkpoint is as old as it may become.

        Left to itself it may be as old as saving is at most 1 % of the time.
        """
        return time.monotonic() - self.saved_at > self._every_s

    @property
    def _every_s(self) -> float:
        found = min(max(LEAST_BETWEEN_SAVES_S, self.save_s / MOST_SAVING_FRACTION), MOST_BETWEEN_SAVES_S)
        return found if self._chosen_s is None else self._chosen_s

    def tried(self, *, saved: bool) -> None:
        """Notes the end of an attempt to save what a run continues from, which may have been left out."""
        self.saved_at = time.monotonic()
        if not saved:
            self.saved_at -= max(0.0, self._every_s - SAVE_AGAIN_S)

    def took(self, seconds: float) -> None:
        """Notes how long a checkpoint took."""
        self.save_s = seconds
        self.saving_s += seconds
