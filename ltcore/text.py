"""Escaping of foreign text for the places where it is shown or stored.

Names of classes, files and runs, reasons of failures and messages of libraries may contain anything: markup, control
characters, line breaks, halves of a surrogate pair. For each kind of place there is one function that makes them
harmless.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import Any

_MARKDOWN = re.compile(r"[\\`|<>\[\]!*&]")


def printable(text: str) -> str:
    r"""Escapes what a terminal would interpret or hide, including line breaks: ``\x1b``, ``\n``, ``\u202e``."""
    return text if text.isprintable() else "".join(map(_spelled, text))


def glimpse(value: Any, most: int = 60) -> str:
    """Returns the beginning of ``repr(value)``, of which no more is made: a value from outside may be as large as its file."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 2 * most + 8  # it leaves out the middle
    text = short.repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def few_words(names: Sequence[str], most: int = 5) -> str:
    """Names the first of them, printable, and counts the others."""
    shown = ", ".join(map(printable, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def printable_lines(text: str) -> str:
    """Escapes like ``printable``, but keeps the line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def message(text: str) -> str:
    """Escapes like ``printable_lines`` and indents all lines but the first.

    A line that came with a value then cannot be mistaken for one of ours.
    """
    return "\n".join(
        line if at == 0 or line.startswith(" ") else f"    {line}"
        for at, line in enumerate(printable_lines(text).split("\n"))
    )


def storable(text: str) -> str:
    r"""Escapes what UTF-8 cannot represent: bytes of a file name that is not UTF-8, as in ``caf\udce9``."""
    return text.encode("utf-8", "backslashreplace").decode()


def storable_json(value: Any) -> Any:
    """Makes every text in a JSON value storable, including keys."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable_json(item) for key, item in value.items()}
    return value


def markdown_cell(text: str) -> str:
    """Escapes a value for a Markdown table, so that it starts no column, image, link or tag."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def markdown_code(text: str) -> str:
    """Puts a value between backticks for a Markdown table.

    The fence has more backticks than any run of them in the value.
    """
    shown = printable(text).replace("|", r"\|")
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _spelled(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def byte_size(count: float) -> str:
    """Writes a size: ``1.50 GiB``, or ``3.0 MiB`` for less than an eighth of a GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float | None) -> str:
    """Formats a time by its two largest units (``2 h 5 min``); None gives a dash."""
    if seconds is None:
        return "—"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (s, "s")]
    first = next((place for place, (n, _) in enumerate(parts) if n), 3)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n) or "0 s"


def counted(number: float, noun: str) -> str:
    """Writes a number with its noun in the singular or plural: ``1 epoch``, ``2,000 images``, ``0.5 CPUs``."""
    shown = f"{int(number):,}" if number == int(number) else f"{number:g}"
    return (
        f"{shown} {noun}" if number == 1 else f"{shown} {noun}{'es' if noun.endswith(('s', 'x', 'tch', 'sh')) else 's'}"
    )
