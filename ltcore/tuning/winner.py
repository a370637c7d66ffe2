"""The winner of a search: the best validation metric at the end of training, among the trials that reached it."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore.config.records import TrialRecord
from ltcore.errors import LtcoreError
from ltcore.text import counted
from ltcore.tuning.messages import last_line
from ltcore.tuning.rungs import ranked, standing


def num_settled(trials: Sequence[TrialRecord]) -> int:
    """Counts the settled trials."""
    return sum(standing(trial) != "open" for trial in trials)


def winner_of(trials: Sequence[TrialRecord], name: str, size: int, metric: str) -> TrialRecord:
    """Chooses the best of the ``size`` trials of the sweep ``name``, by ``metric``.

    Raises LtcoreError while a trial that might have won is not settled, and where none reached the end of training.
    """
    finished = finished_of(trials, name, size)
    return finished[ranked({trial: found.last for trial, found in finished.items()}, metric)[0]]


def finished_of(trials: Sequence[TrialRecord], name: str, size: int) -> dict[str, TrialRecord]:
    """Returns the trials among which a choice is made: name -> trial.

    Raises LtcoreError while one of all ``size`` is not settled, and where none reached the end of training.
    """
    settled = [trial for trial in trials if standing(trial) != "open"]
    if len(settled) < size:
        raise LtcoreError(_why_open([trial for trial in trials if standing(trial) == "open"], name, size))
    finished = {trial.id: trial for trial in settled if trial.status == "finished" and trial.last is not None}
    if not finished:
        reasons = sorted({trial.reason for trial in settled if trial.status == "failed"})
        first = f" First reason: {reasons[0]}" if reasons else ""
        raise LtcoreError(f"No trial of {name} reached the end with a value, so there is no winner.{first}")
    return finished


def _why_open(trials: Sequence[TrialRecord], name: str, size: int) -> str:
    failed = [f"{trial.id} ({last_line(trial.reason)})" for trial in trials if trial.status == "failed"]
    failed = failed or [f"{trial.id} (without a word)" for trial in trials]
    return (
        f"{len(failed)} of {counted(size, 'trial')} of {name} failed of what may have gone by now, so no winner is chosen "
        f"without them: {'; '.join(failed[:3])}{'; ...' if len(failed) > 3 else ''}. The same command runs them again and keeps "
        "the others."
    )
