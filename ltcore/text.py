"""Text that somebody else wrote, made fit for the place that it is put in.

Names of classes, files and runs, the reasons of failures and the messages of libraries may hold anything: markup, control
characters, line breaks, halves of a surrogate pair. Each kind of place has one function that makes them harmless there.
"""

from __future__ import annotations

import re
from typing import Any

_MARKDOWN = re.compile(r"[\\`|<>\[\]!*&]")


def printable(text: str) -> str:
    """Spell out what a terminal would obey or hide, line breaks too, as Python writes it: ``\\x1b``, ``\\n``, ``\\u202e``."""
    return text if text.isprintable() else "".join(map(_spelled, text))


def printable_lines(text: str) -> str:
    """Do as ``printable``, but keep the line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def message(text: str) -> str:
    """Do as ``printable_lines`` and indent all lines but the first: none that came with a value looks like one of ours."""
    return "\n".join(
        line if at == 0 or line.startswith(" ") else f"    {line}"
        for at, line in enumerate(printable_lines(text).split("\n"))
    )


def storable(text: str) -> str:
    """Spell out what UTF-8 cannot hold: the bytes of a file name that was no UTF-8, as in ``caf\\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode()


def storable_json(value: Any) -> Any:
    """Make every text in a JSON value storable, keys too."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable_json(item) for key, item in value.items()}
    return value


def markdown_cell(text: str) -> str:
    """Escape a value in a Markdown table, where it is shown as it is: no column, image, link or tag comes of it."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def markdown_code(text: str) -> str:
    """Put a value between backticks in a Markdown table, fenced by more of them than it holds in a row."""
    shown = printable(text).replace("|", r"\|")
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _spelled(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def byte_size(count: float) -> str:
    """``1.50 GiB``, or ``3.0 MiB`` for less than an eighth of a GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float | None) -> str:
    """``2 h 5 min``: the two largest units of a rounded time; a dash for None."""
    if seconds is None:
        return "—"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (s, "s")]
    first = next((place for place, (n, _) in enumerate(parts) if n), 3)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n) or "0 s"
