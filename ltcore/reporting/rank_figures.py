"""The figure of accuracies by attribute rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ltcore.reporting.svg import BASELINE, PAGE, new_figure, percent_axis, style, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Mapping[str, Sequence[float | None]]
"""Method -> accuracy at each rank."""
_NARROW_PX = 500
"""Below this width, panels stand two beside each other."""
MAX_NUMBERED = 2
"""With more methods than this, numbers at the marks would cover each other."""


def slopes(
    panels: Mapping[str, Panel], ranks: Sequence[str], colors: Mapping[str, str], name: str, width_px: float
) -> str:
    """Draws a line per method from the most frequent attribute to the rare ones, a panel per shot group.

    ``panels``: title -> method -> fraction at each of ``ranks``; ``colors``: method -> color.
    """
    narrow = width_px < _NARROW_PX
    columns = min(2 if narrow else 4, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        figure, all_axes = new_figure(width_px, 225 * rows, columns, rows, sharex=True, sharey=True)
        figure.get_layout_engine().set(hspace=0.12 * (rows > 1))
        for axes, (title, panel) in zip(all_axes, panels.items(), strict=False):
            _draw(axes, panel, colors)
            axes.set_title(title)
            axes.set_xticks(range(len(ranks)), ranks)
            axes.set_xlim(-0.35, len(ranks) - 0.65)
            axes.tick_params(axis="x", length=0, labelbottom=True)
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        percent_axis(all_axes[0].yaxis)
        all_axes[0].set_ylim(-13, 112)  # room for the numbers at 0 and at 100
        all_axes[0].set_yticks([0, 25, 50, 75, 100])
        return to_svg(figure, name)


def _draw(axes: Axes, panel: Panel, colors: Mapping[str, str]) -> None:
    numbered = len(panel) <= MAX_NUMBERED
    for method, values in panel.items():
        points = [(x, 100 * value) for x, value in enumerate(values) if value is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], color=colors[method], lw=2, zorder=3)
        for x, y in points:
            axes.plot(x, y, "D" if colors[method] == BASELINE else "o", color=colors[method], mec=PAGE, ms=7, zorder=4)
            if numbered:
                _number(axes, x, y, above=_is_above(panel, method, x), color=colors[method])


def _is_above(panel: Panel, method: str, x: int) -> bool:
    """Tells whether a method's number stands above its mark: the best one's does (the last of equals), the other's is below."""
    values = {name: value for name, of_method in panel.items() if (value := of_method[x]) is not None}
    return max(reversed(values), key=lambda name: values[name]) == method


def _number(axes: Axes, x: float, y: float, *, above: bool, color: str) -> None:
    axes.annotate(
        f"{y:.0f}",
        (x, y),
        (0, 6 if above else -7),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        color=color,
    )
