"""A notebook's display, as rich and the package see it: what was shown, and what it was replaced by."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


class Handle:
    """One output of a cell."""

    def __init__(self, html: str) -> None:
        self.shown = [html]

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """The outputs of the cell, in their order."""
    outputs: list[Handle] = []

    def display(value: Any, **options: Any) -> Handle:
        outputs.append(Handle(value if isinstance(value, str) else value._repr_mimebundle_([], [])["text/html"]))
        return outputs[-1]

    module = ModuleType("IPython.display")
    module.HTML, module.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return outputs
