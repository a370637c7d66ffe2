"""A block of output that is redrawn in place: on a terminal by rich, in a notebook by the notebook's own display.

rich's own block in notebooks needs ipywidgets, which few environments have; a display that is updated needs nothing.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rich.console import RenderableType
from rich.live import Live

from ltcore.reporting.terminal import Terminal

REDRAW_S = 0.5
_PRE = '<pre style="line-height:normal;font-family:monospace">{code}</pre>'


def can_redraw(console: Terminal) -> bool:
    """Tells whether output on this console can be replaced later."""
    return not console.quiet and (console.is_terminal or console.is_jupyter)


def live_block(console: Terminal, render: Callable[[], RenderableType]) -> Live | NotebookBlock:
    """Returns a block that shows what ``render`` returns, and is gone afterwards."""
    if console.is_jupyter:
        return NotebookBlock(console, render)
    return Live(get_renderable=render, console=console, refresh_per_second=1 / REDRAW_S, transient=True)


class NotebookBlock(AbstractContextManager["NotebookBlock"]):
    """One output of a notebook's cell. It is redrawn when it is told to, not by a thread of its own."""

    def __init__(self, console: Terminal, render: Callable[[], RenderableType]) -> None:
        self._console, self._render = console, render
        self._handle: Any = None
        self._drawn = 0.0

    def refresh(self) -> None:
        """Draws the block again, at most every ``REDRAW_S`` seconds."""
        if time.monotonic() - self._drawn < REDRAW_S:
            return
        self._drawn = time.monotonic()
        self._show(to_html(self._render(), self._console.width))

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._show("")

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display  # there, or rich would have seen no notebook

        if self._handle is None:
            self._handle = display(HTML(html), display_id=True)
        else:
            self._handle.update(HTML(html))


def to_html(renderable: RenderableType, width: int) -> str:
    """Draws as preformatted HTML text, escaped."""
    drawn = Terminal(record=True, file=io.StringIO(), force_jupyter=False, width=width)
    drawn.print(renderable)
    return drawn.export_html(code_format=_PRE, inline_styles=True)
