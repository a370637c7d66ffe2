"""Terminal output through rich, with untrusted text shown literally."""

from __future__ import annotations

import contextlib
import os
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

    def progress(self, line: Text, **options: Any) -> None:
        """Prints a line that is lost where it cannot be written, as on a full disk: the work that it tells of goes on."""
        try:
            self.print(line, **options)
        except OSError:
            del self._buffer[:]  # which rich would print again with the next line

    def on_broken_pipe(self) -> None:
        """Prints nothing more once nobody reads it, where rich would end the process in the middle of its work."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):  # of a stream that is no file
            os.dup2(nowhere, self.file.fileno())  # where it would be tried again at the end of the process
        os.close(nowhere)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Joins parts, each a string or a pair (string, style), to a message."""
    return Text.assemble(*(message(p) if isinstance(p, str) else (message(p[0]), p[1]) for p in parts))
