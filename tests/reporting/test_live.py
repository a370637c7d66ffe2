"""Blocks that are redrawn: where there is a terminal, in a notebook without ipywidgets, and nowhere else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.live import Live
from rich.table import Table

from ltcore.cli.epoch_lines import EpochLines
from ltcore.reporting import live
from ltcore.reporting.live import NotebookBlock, can_redraw, live_block, to_html
from ltcore.reporting.terminal import Terminal
from ltcore.runtime.progress import ProgressDisplay
from ltcore.training.context import LocalContext
from tests.reporting.notebook import Handle, notebook

__all__ = ["notebook"]
METRICS = {"epoch": 1, "train/loss": 0.5, "val/top1": 0.25, "lr": 0.1, "images_per_s": 9.0, "data_wait_fraction": 0.0}


@pytest.fixture
def console(notebook: list[Handle], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setattr(live, "REDRAW_S", 0.0)
    return Terminal(force_jupyter=True, file=io.StringIO())


def test_a_block_is_for_what_can_be_redrawn(notebook: list[Handle]) -> None:
    there, here = Terminal(force_terminal=True, file=io.StringIO()), Terminal(force_jupyter=True)
    pipe, quiet = Terminal(file=io.StringIO()), Terminal(force_jupyter=True, quiet=True)
    assert [can_redraw(c) for c in (there, here, pipe, quiet)] == [True, True, False, False]
    assert isinstance(live_block(there, Table), Live) and isinstance(live_block(here, Table), NotebookBlock)


def test_what_is_drawn_in_a_notebook_is_escaped() -> None:
    table = Table("<b>run</b>")
    table.add_row("<script>x</script>\x1b[31m")
    page = to_html(table, 80)
    assert "&lt;script&gt;" in page and "<script" not in page and "\x1b" not in page and page.startswith("<pre")


def test_one_output_is_replaced_again_and_again_and_empty_at_the_end(console: Terminal, notebook: list[Handle]) -> None:
    states = iter(["one", "two"])
    with NotebookBlock(console, lambda: next(states)) as block:
        block.refresh()
        block.refresh()
    (output,) = notebook
    assert "one" in output.shown[0] and "two" in output.shown[1] and output.shown[2] == ""


def test_it_is_not_redrawn_more_often_than_one_can_see(
    console: Terminal, notebook: list[Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REDRAW_S", 60.0)
    block = NotebookBlock(console, lambda: "x")
    for _ in range(5):
        block.refresh()
    assert len(notebook[0].shown) == 1


def test_a_run_in_a_notebook_has_a_bar_and_leaves_its_last_line(console: Terminal, notebook: list[Handle]) -> None:
    with EpochLines(LocalContext(), 2, console) as shown:
        shown.beat(0, 5, 20)
        shown.report(METRICS, None)
        shown.report({**METRICS, "epoch": 2, "val/balanced_accuracy": 0.5, "val/ncm_balanced_accuracy": 0.25}, None)
    block, last = notebook
    assert "first epoch" in block.shown[0] and "━" in block.shown[0]
    assert "epoch    1/2  loss 0.5000" in block.shown[1] and block.shown[-1] == ""
    assert "epoch    2/2" in last.shown[0]
    assert "val balanced accuracy 50.00%, of the nearest class mean 25.00%" in last.shown[0]


def test_a_sweep_in_a_notebook_shows_its_runs(console: Terminal, notebook: list[Handle]) -> None:
    display = ProgressDisplay(console)
    with display.stage("search", expected=2):
        display.update({"<b>t</b>": {"epoch": 1, "images_seen": 5, "total_images": 10, "val/top1": 0.5}})
    stage, block = notebook
    assert "search" in stage.shown[0]
    assert "&lt;b&gt;t&lt;/b&gt;" in block.shown[0] and "50%" in block.shown[0] and block.shown[-1] == ""


def test_a_sweep_shows_the_metric_that_it_ranks_by(console: Terminal, notebook: list[Handle]) -> None:
    display = ProgressDisplay(console, "val/ece")
    with display.stage("search", expected=2):
        runs = {"a": (0.25, 0.9), "b": (0.125, 0.8)}
        display.update({name: {"val/ece": ece, "val/balanced_accuracy": other} for name, (ece, other) in runs.items()})
    shown = notebook[1].shown[0]
    assert "best validation ECE so far 12.5%" in shown, "the lowest"
    assert "25.0%" in shown and "90.0%" not in shown


@pytest.mark.parametrize(("options", "said"), [({}, True), ({"quiet": True}, False)])
def test_elsewhere_lines_are_printed_or_nothing(options: dict[str, Any], said: bool, tmp_path: Path) -> None:
    file = io.StringIO()
    with EpochLines(LocalContext(), 1, Terminal(file=file, **options)) as shown:
        shown.beat(0, 1, 2)
        shown.report(METRICS, None)
    assert ("epoch    1/1  loss 0.5000" in file.getvalue()) == said
