"""The terminal, through rich: tables and colors are ours, and text is text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ltcore.text import message, printable_lines


class Terminal(Console):
    """A console that reads no markup and obeys no control character in the strings that it prints, tables included.

    Messages of libraries hold paths in brackets (gloo's do), which rich takes for tags; what has a style is a ``Text``
    (``styled``).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string passes here on its way: printed ones, cells, titles."""
        return super().render_str(printable_lines(text), **options)


def styled(*parts: str | tuple[str, str]) -> Text:
    """A message of parts, each a string or a pair (string, style)."""
    return Text.assemble(*(message(p) if isinstance(p, str) else (message(p[0]), p[1]) for p in parts))
