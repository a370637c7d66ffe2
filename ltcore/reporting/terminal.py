"""Terminal output through rich, with untrusted text shown literally."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ltcore.text import message, printable_lines


class Terminal(Console):
    """A console that interprets no markup and no control characters in the strings it prints, tables included.

    Messages of libraries contain paths in brackets (gloo's do), which rich takes for tags. Styled output is a ``Text``
    (``styled``).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escapes a string before rendering; printed strings, cells and titles all pass through here."""
        return super().render_str(printable_lines(text), **options)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Joins parts, each a string or a pair (string, style), to a message."""
    return Text.assemble(*(message(p) if isinstance(p, str) else (message(p[0]), p[1]) for p in parts))
