"""The figure of a sample grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltcore.reporting.figures import short_label
from ltcore.reporting.sample_grid import GridCell, GridRow, SampleGrid
from ltcore.reporting.svg import FAINT, INK, PX_PER_INCH, WINNER, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

CELL_PX, STRIP_PX = 66, 18
"""Side of an image, and height of the strip below it that has its count."""
NAME_PX = 16
"""Height of the line below that, which has the name of an attribute where columns have none."""
_LEFT_PX, _TITLE_PX, _MARGIN_PX, _CHAR_PX, _LEAST_PX = 190, 56, 14, 8, 620
_REMARK_CHAR_PX = 6
_BAR_CELLS = 4
"""Width of the bars beside plain examples, in cells."""
_MOST_TINT = 0.6


def grid_figure(
    grid: SampleGrid,
    images: Mapping[int, Image.Image],
    classes: Sequence[str],
    groups: Sequence[str],
    title: str,
    remark: str,
) -> Any:
    """Draws images of a split by class and attribute, each with how many there are.

    Args:
        grid: what to draw.
        images: index inside the split -> image, of any shape; its largest centered square is shown.
        classes: names of all classes.
        groups: their shot groups.
        title: above the grid.
        remark: a smaller line below the title.
    """
    from matplotlib.figure import Figure

    columns = len(grid.titles) or max([1, *(len(row.cells) for row in grid.rows)]) + _BAR_CELLS
    headers = [short_label(title, 18) for title in grid.titles]
    name_px = NAME_PX if any(cell.name for row in grid.rows for cell in row.cells) else 0
    top_px = _TITLE_PX + max((_CHAR_PX * len(header) + 10 for header in headers), default=0)
    size_px = (
        max(_LEAST_PX, _LEFT_PX + columns * CELL_PX + _MARGIN_PX, _REMARK_CHAR_PX * len(remark) + 2 * _MARGIN_PX),
        top_px + len(grid.rows) * (CELL_PX + STRIP_PX + name_px) + _MARGIN_PX,
    )
    with style():
        figure = Figure(figsize=(size_px[0] / PX_PER_INCH, size_px[1] / PX_PER_INCH))
        axes = figure.add_axes(
            (
                _LEFT_PX / size_px[0],
                _MARGIN_PX / size_px[1],
                columns * CELL_PX / size_px[0],
                1 - (top_px + _MARGIN_PX) / size_px[1],
            )
        )
        axes.set_axis_off()
        for y, row in enumerate(grid.rows):
            _label(axes, y, f"{short_label(classes[row.label], 20)}", f"{groups[row.label]}, {row.count:,}")
            for x, cell in enumerate(row.cells):
                _draw(axes, x, y, cell, grid, images, name_px)
            if not grid.titles:
                _draw_bar(axes, columns - _BAR_CELLS, y, row, grid)
        for x, header in enumerate(headers):
            axes.text(x + 0.5, -0.06, header, rotation=90, ha="center", va="bottom")
        axes.set_xlim(0, columns)
        axes.set_ylim(len(grid.rows), 0)
        figure.text(_MARGIN_PX / size_px[0], 1 - 10 / size_px[1], title, va="top", fontsize=14)
        figure.text(_MARGIN_PX / size_px[0], 1 - 32 / size_px[1], remark, va="top", fontsize=10, alpha=0.65)
    return figure


def _label(axes: Axes, y: int, name: str, remark: str) -> None:
    axes.text(-0.15, y + 0.38, name, ha="right", va="bottom")
    axes.text(-0.15, y + 0.42, remark, ha="right", va="top", fontsize=10, alpha=0.65)


def _draw(
    axes: Axes, x: int, y: int, cell: GridCell, grid: SampleGrid, images: Mapping[int, Image.Image], name_px: int
) -> None:
    """Draws an image with its count below, or an empty cell; and below either its name, where cells have names."""
    from matplotlib.patches import Rectangle
    from PIL import ImageOps

    row_px = CELL_PX + STRIP_PX + name_px
    height, bottom = CELL_PX / row_px, 1 - name_px / row_px
    if cell.name:
        name = short_label(cell.name, 12)
        axes.text(x + 0.5, y + (1 + bottom) / 2 - 0.02, name, ha="center", va="center", fontsize=8.5, alpha=0.8)
    if cell.index is None:
        axes.add_patch(Rectangle((x + 0.04, y + 0.03), 0.92, bottom - 0.06, fill=False, ls=":", ec=FAINT))
        axes.text(x + 0.5, y + bottom / 2, "0", ha="center", va="center", color=FAINT)
        return
    image = images[cell.index]
    square = ImageOps.fit(image, (min(image.size),) * 2)
    axes.imshow(square, extent=(x + 0.04, x + 0.96, y + 0.03 + 0.92 * height, y + 0.03), aspect="auto", zorder=2)
    if grid.titles:
        tint = _MOST_TINT * grid.share(cell.count)
        axes.add_patch(
            Rectangle(
                (x + 0.04, y + 0.03 + 0.92 * height), 0.92, bottom - 0.06 - 0.92 * height, fc=WINNER, alpha=tint, lw=0
            )
        )
        axes.text(
            x + 0.5,
            y + (bottom + height) / 2 - 0.02,
            f"{cell.count:,}",
            ha="center",
            va="center",
            fontsize=11,
            color=INK,
        )


def _draw_bar(axes: Axes, x: int, y: int, row: GridRow, grid: SampleGrid) -> None:
    """Draws how many images the class has."""
    from matplotlib.patches import Rectangle

    length = (_BAR_CELLS - 1.2) * grid.share(row.count)
    axes.add_patch(Rectangle((x + 0.2, y + 0.25), length, 0.4, fc=WINNER, alpha=0.75, lw=0))
    axes.text(x + 0.3 + length, y + 0.45, f"{row.count:,}", va="center")
