"""Matplotlib figures as deterministic SVG for light and dark pages, with text kept as text.

Only matplotlib's object interface is used (no pyplot, no global state); sizes are in CSS pixels. Colors are the blue
and the vermilion of Okabe and Ito's palette, which people with any color vision can distinguish; marks differ in shape
as well. In the SVG, colors become CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID, FAINT, PAGE = "#101112", "#d0d1d2", "#a0a1a2", "#fefdfc"
WINNER, BASELINE = "#0072b2", "#d55e00"
_VARIABLES = {
    INK: "currentColor",
    GRID: "var(--grid)",
    FAINT: "var(--faint)",
    PAGE: "var(--page)",
    WINNER: "var(--winner)",
    BASELINE: "var(--baseline)",
}
COLORS = {"winner": WINNER, "baseline": BASELINE}
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colors for reports of several runs; if there are more runs, they are drawn faint."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ltcore",
    "text.parse_math": False,  # a class may be called $1
    "font.size": 12,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
PX_PER_INCH = 72  # matplotlib's SVG unit is the point: one inch of figure is 72 of them


@contextmanager
def style() -> Iterator[None]:
    """Sets the style of all figures inside the block."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(
    width_px: float, height_px: float, columns: int = 1, rows: int = 1, **axes: Any
) -> tuple[Any, list[Axes]]:
    """Creates a figure with panels side by side, or below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / PX_PER_INCH, height_px / PX_PER_INCH), layout="constrained", facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False, **axes).ravel()
    for panel in panels:
        panel.set_facecolor("none")
    return figure, list(panels)


def to_svg(figure: Any, name: str) -> str:
    """Returns the figure as an ``<svg>`` element.

    Ids get ``name`` as a prefix, because several figures share a page.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    # and not savefig, which draws all twice where there is a layout
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="max-width: \2px"', svg, count=1)
    svg = re.sub(r'style="font: [^;"]*?(\d+)px [^;"]*', r'style="font-size: \1px', svg)  # use the page's typeface
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg


def percent_axis(axis: Any) -> None:
    """Formats the ticks of an axis in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
