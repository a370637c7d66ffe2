"""Classes and attributes of an evaluation in a terminal: how well each is recognized, and what classes are taken for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ltcore.cli.console import percent_cell

ATTRIBUTE = "attribute/"
"""Beginning of the names of metrics of one attribute."""
MOST_CLASSES = 20
"""Of a table: those with the lowest recall; the JSON has all."""


def class_table(result: Mapping[str, Any], split: str) -> Table:
    """Returns a table of the classes of a split, the lowest recall first; classes without images are left out.

    ``result`` is that of ``predict.evaluate``.
    """
    classes, recalls, support = result["classes"], result["per_class"][split], result["support"][split]
    taken_for = _most_confused(result["confusion"][split])
    tested = sorted((c for c, count in enumerate(support) if count), key=lambda c: (recalls[c], -support[c], c))
    shown = tested[:MOST_CLASSES]
    title = f"{split}: classes" if len(shown) == len(tested) else f"{split}: {len(shown)} of {len(tested)} classes"
    table = Table(title=f"{title}, lowest recall first")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("recall, %", justify="right")
    table.add_column("most often taken for")
    for c in shown:
        other, count = taken_for.get(c, (c, 0))
        table.add_row(
            classes[c], str(support[c]), percent_cell(recalls[c]), f"{classes[other]} ({count})" if count else "-"
        )
    return table


def attribute_table(result: Mapping[str, Any]) -> Table | None:
    """Returns a table of the attributes, the lowest accuracy of the first split first; None where the data have none."""
    splits = list(result["splits"].values())
    found = {
        name.removeprefix(ATTRIBUTE): [values.get(name) for values in splits]
        for name in dict.fromkeys(name for values in splits for name in values)
        if name.startswith(ATTRIBUTE) and not name.endswith("/macro_precision")
    }
    tested = sorted((name for name, row in found.items() if row[0] is not None), key=lambda name: found[name][0] or 0)
    if not tested:
        return None
    shown = tested[:MOST_CLASSES]
    count = "attributes" if len(shown) == len(tested) else f"{len(shown)} of {len(tested)} attributes"
    table = Table(title=f"{count}, lowest accuracy first")
    table.add_column("attribute")
    for split in result["splits"]:
        table.add_column(f"{split}, %", justify="right")
    for name in shown:
        table.add_row(name, *map(percent_cell, found[name]))
    return table


def _most_confused(confusion: Mapping[str, list[int]]) -> dict[int, tuple[int, int]]:
    """Returns for each class that is confused the one it is most often taken for, and how often."""
    found: dict[int, tuple[int, int]] = {}
    for label, prediction, count in zip(*(confusion[name] for name in ("label", "prediction", "count")), strict=True):
        if label != prediction and count > found.get(label, (0, 0))[1]:
            found[label] = (prediction, count)
    return found
