"""Figures of the report of one run: recall over the rank of the classes, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ltcore.evaluation.calibration import NUM_BINS, ReliabilityBin
from ltcore.reporting.figures import mark_groups
from ltcore.reporting.svg import BASELINE, FAINT, INK, WINNER, new_figure, percent_axis, style, to_svg


def recall_by_rank(
    counts: Sequence[int], recalls: Sequence[float | None], groups: Sequence[str], name: str, width_px: float = 1000
) -> str:
    """Draws training images and recalls of classes that are sorted by size, the largest first.

    The recalls have their moving mean over a twentieth of the classes.
    """
    ranks = range(1, len(counts) + 1)
    tested = [(rank, 100 * recall) for rank, recall in zip(ranks, recalls, strict=True) if recall is not None]
    with style():
        figure, (above, below) = new_figure(width_px, 460, rows=2, sharex=True, height_ratios=(2, 3))
        above.fill_between(ranks, counts, step="mid", color=FAINT, alpha=0.35, lw=0)
        above.step(ranks, counts, where="mid", color=FAINT, lw=1.4)
        above.set_yscale("log")
        above.set_ylim(0.8 * max(1, min(counts)), 1.25 * max(counts))
        above.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        above.set_title("training images, logarithmic" if width_px > 500 else "training images, log", pad=20)
        below.plot(
            *zip(*tested, strict=True), "o", color=WINNER, ms=4.5 if len(tested) <= 1000 else 3, alpha=0.5, mew=0
        )
        below.plot(*_moving_mean(tested, window_of(len(tested))), color=INK, lw=2)
        below.set_ylim(-4, 104)
        percent_axis(below.yaxis)
        below.set_title("recall")
        below.set_xlabel("class, by training images")
        below.set_xlim(0.5, len(counts) + 0.5)
        mark_groups(above, groups, first=1)
        for x in (x for x in range(1, len(groups)) if groups[x] != groups[x - 1]):
            below.axvline(x + 0.5, color=FAINT, lw=0.8, zorder=1)
        return to_svg(figure, name)


def window_of(num_classes: int) -> int:
    """Returns how many classes the moving mean takes together, an odd number."""
    return max(5, num_classes // 20 | 1)


def _moving_mean(points: Sequence[tuple[int, float]], window: int) -> tuple[list[int], list[float]]:
    """Returns ranks and means of the points around each; at the ends of as many as there are."""
    half = window // 2
    near = (points[max(0, at - half) : at + half + 1] for at in range(len(points)))
    return [rank for rank, _ in points], [fmean(value for _, value in some) for some in near]


def reliability(bins: Sequence[ReliabilityBin], name: str) -> str:
    """Draws accuracy against confidence, with the shares of the images as bars at the bottom."""
    total = sum(found.count for found in bins)
    filled = [found for found in bins if found.confidence is not None and found.accuracy is not None]
    with style():
        figure, (axes,) = new_figure(330, 300)
        axes.plot([0, 100], [0, 100], "--", color=BASELINE, lw=1.4, zorder=1)
        centers = [100 * (m + 0.5) / NUM_BINS for m in range(len(bins))]
        axes.bar(centers, [100 * b.count / total for b in bins], 84 / NUM_BINS, color=FAINT, alpha=0.45, lw=0, zorder=2)
        confidences = [100 * (found.confidence or 0.0) for found in filled]
        accuracies = [100 * (found.accuracy or 0.0) for found in filled]
        axes.vlines(confidences, confidences, accuracies, color=WINNER, lw=1.2, alpha=0.6, zorder=3)
        areas = [14 + 300 * found.count / total for found in filled]
        axes.scatter(confidences, accuracies, s=areas, color=WINNER, lw=0, alpha=0.9, zorder=4)
        axes.set_xlim(0, 100)
        axes.set_ylim(-2, 102)
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        axes.set_xlabel("confidence")
        axes.set_title("accuracy")
        return to_svg(figure, name)
