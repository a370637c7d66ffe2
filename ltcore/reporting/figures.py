"""Figures of the reports. Accuracies are passed as fractions and drawn in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ltcore.reporting.svg import BASELINE, COLORS, FAINT, INK, PAGE, WINNER, new_figure, percent_axis, style, to_svg
from ltcore.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """A metric of one run over epochs."""

    label: str
    role: str
    """'winner', 'baseline', 'finished', 'stopped', or a color."""
    epochs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Dot:
    """A trial in a response plot."""

    x: Any
    """A number, or one of the listed values."""
    y: float
    role: str
    """'winner', 'finished' or 'stopped'."""


@dataclass(frozen=True)
class Span:
    """The range of a swept key."""

    kind: str
    """'log', 'uniform' or 'int'."""
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Winner - baseline in one metric, as fractions."""

    label: str
    mean: float
    low: float | None
    high: float | None
    distinguishable: bool
    minimize: bool = False
    """True where lower values are better."""


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves heights apart as little as needed for labels at them not to overlap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed


def curves(lines: Sequence[Curve], ylabel: str, name: str, width_px: float = 1000) -> str:
    """Draws learning curves.

    Winner, baseline and colored runs are labeled at their end, the others stay in the background.
    """
    from matplotlib.ticker import MaxNLocator

    height_px = 340.0
    with style():
        figure, (axes,) = new_figure(width_px, height_px)
        named = []
        for line in sorted(lines, key=lambda c: ("stopped", "finished").index(c.role) if c.role in _BACK else 2):
            values = [100 * v for v in line.values]
            color = COLORS.get(line.role, FAINT if line.role in _BACK else line.role)
            front = line.role not in _BACK
            alpha = 1.0 if front else {"stopped": 0.5, "finished": 0.9}[line.role]
            dash = "--" if line.role == "baseline" else "-"
            axes.plot(line.epochs, values, dash, color=color, lw=2.2 if front else 1.1, alpha=alpha)
            if line.role == "stopped":
                axes.plot(line.epochs[-1:], values[-1:], "|", color=FAINT, ms=9, mew=1.5)
            if front:
                axes.plot(line.epochs[-1:], values[-1:], "o", color=color, ms=5)
                named.append((short_label(line.label), color, line.epochs[-1], values[-1]))
        bottom, top = axes.get_ylim()
        heights = _spread([y for *_, y in named], 16 * (top - bottom) / (height_px - 60))
        for (label, color, x, _), height in zip(named, heights, strict=True):
            axes.annotate(
                label, (x, height), (9, 0), textcoords="offset points", va="center", color=color, annotation_clip=False
            )
        axes.set_xlabel("epoch")
        axes.set_title(ylabel)
        axes.set_xlim(0, 1.02 * max(line.epochs[-1] for line in lines))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        percent_axis(axes.yaxis)
        return to_svg(figure, name)


_BACK = ("stopped", "finished")


def response(
    dots: Sequence[Dot], baseline: float | None, searched: Span | Sequence[str], name: str, limits: tuple[float, float]
) -> str:
    """Draws the validation metric against one swept key as a scatter, with the baseline as a line.

    ``searched`` is a range, or a list of values, which are drawn at equal distances; ``limits`` are fractions.
    """
    span = searched if isinstance(searched, Span) else None
    labels = [] if isinstance(searched, Span) else list(dict.fromkeys([*searched, *(str(d.x) for d in dots)]))
    with style():
        figure, (axes,) = new_figure(320, 230)
        for role, marker, color, filled in (
            ("stopped", "o", FAINT, False),
            ("finished", "o", FAINT, True),
            ("winner", "D", WINNER, True),
        ):
            mine = [d for d in dots if d.role == role]
            xs = [d.x if span else labels.index(str(d.x)) for d in mine]
            face = color if filled else PAGE
            axes.plot(xs, [100 * d.y for d in mine], marker, color=color, mfc=face, ms=7.5, mew=1.4, zorder=3)
        if baseline is not None:
            axes.axhline(100 * baseline, color=BASELINE, lw=1.6, ls="--", zorder=2)
        if span is None:
            axes.set_xticks(range(len(labels)), map(short_label, labels))
            axes.set_xlim(-0.5, len(labels) - 0.5)
        else:
            _range_axis(axes, span)
        axes.set_ylim(100 * limits[0], 100 * limits[1])
        percent_axis(axes.yaxis)
        return to_svg(figure, name)


def _range_axis(axes: Axes, span: Span) -> None:
    """Shows the whole searched range with a margin; ticks are its ends and round values between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if span.kind == "log":
        margin = (span.high / span.low) ** 0.05
        axes.set_xscale("log")
        axes.set_xlim(span.low / margin, span.high * margin)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span.high / span.low < 100 else (1.0,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.05 * (span.high - span.low)
        axes.set_xlim(span.low - margin, span.high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=span.kind == "int"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def group_bars(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], name: str) -> str:
    """Draws the accuracy of shot groups.

    ``panels``: panel title -> group -> role ('winner', 'baseline') -> one value per seed.
    """
    highest = max(max(values) for groups in panels.values() for roles in groups.values() for values in roles.values())
    with style():
        figure, all_axes = new_figure(500 if len(panels) == 1 else 1000, 300, len(panels), sharey=True)
        for axes, (title, groups) in zip(all_axes, panels.items(), strict=True):
            for at, roles in enumerate(groups.values()):
                for side, (role, values) in zip((-0.2, 0.2), roles.items(), strict=True):
                    percent = [100 * v for v in values]
                    axes.bar(at + side, fmean(percent), 0.36, color=COLORS[role], alpha=0.85, lw=0)
                    offsets = [at + side + 0.05 * (i - (len(percent) - 1) / 2) for i in range(len(percent))]
                    axes.plot(offsets, percent, "o", color=INK, mec=PAGE, mew=0.8, ms=5)
                    axes.annotate(
                        f"{fmean(percent):.0f}",
                        (at + side, max(percent)),
                        (0, 6),
                        textcoords="offset points",
                        ha="center",
                        color=COLORS[role],
                    )
            axes.set_xticks(range(len(groups)), list(groups))
            axes.tick_params(axis="x", length=0)
            axes.set_title(title)
            axes.set_ylim(0, 112 * highest or 1)
            percent_axis(axes.yaxis)
        return to_svg(figure, name)


def differences(panels: Mapping[str, Sequence[Difference]], name: str) -> str:
    """Draws winner - baseline with its interval, one row per metric.

    ``panels``: panel title -> metrics. All panels have the same rows.
    """
    labels = list(dict.fromkeys(line.label for lines in panels.values() for line in lines))
    with style():
        width_px = 500 if len(panels) == 1 else 1000
        figure, all_axes = new_figure(width_px, 70 + 24 * len(labels), len(panels), sharex=True, sharey=True)
        for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
            axes.axvline(0, color=BASELINE, lw=1.6, ls="--", zorder=1)
            for line in lines:
                at = labels.index(line.label)
                color = FAINT if not line.distinguishable else WINNER if (line.mean > 0) != line.minimize else BASELINE
                if line.low is not None and line.high is not None:
                    axes.plot([100 * line.low, 100 * line.high], [at, at], color=color, lw=2.4)
                axes.plot(100 * line.mean, at, "o" if line.distinguishable else "D", color=color, mec=PAGE, ms=8)
            axes.set_yticks(range(len(labels)), map(short_label, labels))
            axes.set_ylim(len(labels) - 0.5, -0.5)
            axes.grid(axis="x")
            axes.grid(visible=False, axis="y")
            axes.set_title(title)
            axes.set_xlabel("points against the baseline")
            axes.spines["left"].set_visible(False)
        return to_svg(figure, name)


MAX_NAMED_CLASSES = 60
MAX_NAME_CHARS = 60
"""Longest name in a figure; tables show it in full."""


def per_class(
    classes: Sequence[str], groups: Sequence[str], means: Mapping[str, Sequence[float | None]], name: str
) -> str:
    """Draws the accuracy of each class, with the classes of a shot group side by side.

    ``means``: role ('winner', 'baseline') -> mean over seeds per class, None where untested.
    """
    order = sorted(range(len(classes)), key=lambda c: (_GROUP_ORDER.get(groups[c], 3), c))
    few = len(classes) <= MAX_NAMED_CLASSES
    with style():
        figure, (axes,) = new_figure(1000, 290)
        _plot_roles(axes, order, means, few)
        mark_groups(axes, [groups[c] for c in order])
        if few:
            names = [short_label(classes[c]) for c in order]
            axes.set_xticks(range(len(order)), names, rotation=90 if sum(map(len, names)) > 120 else 0)
        else:
            axes.set_xticks([])
            axes.set_xlabel(f"{len(classes)} classes")
        axes.set_xlim(-0.6, len(order) - 0.4)
        percent_axis(axes.yaxis)
        return to_svg(figure, name)


def _plot_roles(axes: Axes, order: Sequence[int], means: Mapping[str, Sequence[float | None]], few: bool) -> None:
    """Puts a mark for each role at each class, and a line between the marks of a class."""
    for role, values in reversed(list(means.items())):
        at = [x for x, c in enumerate(order) if values[c] is not None]
        heights = [100 * v for v in (values[c] for c in order) if v is not None]
        marker = "D" if role == "baseline" else "o"
        axes.plot(at, heights, marker, color=COLORS[role], mec=PAGE, ms=9 if few else 5, zorder=3)
    for x, c in enumerate(order):
        of_class = [100 * v for v in (values[c] for values in means.values()) if v is not None]
        axes.plot([x] * len(of_class), of_class, color=FAINT, lw=2.4 if few else 1, zorder=2)


def mark_groups(axes: Axes, groups: Sequence[str], first: int = 0) -> None:
    """Draws a line before each run of equal groups and names it above; ``first`` is the place of the first."""
    for x in (x for x, group in enumerate(groups) if x == 0 or group != groups[x - 1]):
        axes.axvline(first + x - 0.5, color=FAINT, lw=0.8 if x else 0, zorder=1)
        axes.annotate(
            short_label(groups[x]), (first + x - 0.4, 1), xycoords=("data", "axes fraction"), va="bottom", fontsize=11
        )


def short_label(text: str, most: int = MAX_NAME_CHARS) -> str:
    """Returns a name as a figure shows it, in at most so many characters."""
    name = printable(text)
    return name if len(name) <= most else f"{name[: most - 1]}…"


_GROUP_ORDER = {"many": 0, "medium": 1, "few": 2}
