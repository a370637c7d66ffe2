"""What a sweep says of its trials while they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltcore.config.records import RunRecord
from ltcore.reporting.format import short_names


def params_text(params: Mapping[str, Any]) -> str:
    """Writes the parameters of a trial under short names."""
    names = short_names(params)
    return ", ".join(f"{names[key]}={short(value)}" for key, value in params.items())


def short(value: Any) -> str:
    """Writes the value of a parameter with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def last_line(reason: str) -> str:
    """Shortens the reason of a failure to its last line."""
    return reason.strip().rpartition("\n")[2][:300]


def end_of_part(record: RunRecord | None, metric: str, state: str, lost: str | None) -> tuple[str, str]:
    """Says how a part of a trial ended: the text and its style.

    Args:
        state: the outcome by the trial's record (``rungs.standing``).
        lost: Ray's words, where its process died for the last time.
    """
    value = None if record is None else record.last.get(metric)
    text = "-" if value is None else f"{100 * value:.1f}%"
    if state == "there" and record is not None:
        return f"{text} after epoch {record.epochs_done}, waits for the others", ""
    if record is not None and record.status == "failed":
        return f"failed ({last_line(record.reason)})", "red"
    if lost is not None:
        return f"lost with its process ({lost})", "red"
    if state == "finished" and record is not None and record.reason:
        return f"{text}, {record.reason}", ""
    return (f"{text}, cut short; the same command goes on with it" if state == "open" else f"{text} at the end"), ""
