"""Reads a report back: its numbers, its ids, its words, and whether its tags nest."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[list[str]] = []
        """The names of the attributes of each element."""
        self.data: list[dict[str, str]] = []
        """The ``data-`` attributes of each element that has any, without the prefix."""
        self.words = ""
        self._open: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.attributes.append(list(values))
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [values[name] for name in ("href", "src", "xlink:href") if name in values]
        if data := {name[5:]: value for name, value in values.items() if name.startswith("data-")}:
            self.data.append(data)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.words += " "

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words += data

    def values(self, **attributes: str) -> list[float | None]:
        """The exact values of the elements with these ``data-`` attributes; None where an element has no value."""
        found = [d for d in self.data if attributes.items() <= d.items()]
        return [float(d["value"]) if "value" in d else None for d in found]
