"""What is shown of a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.cli.console import show_result, show_run
from ltcore.config.records import SweepRecord
from ltcore.tuning.messages import end_of_part
from tests.records import run_record
from tests.reporting.fake_sweep import by_rank, make_sweep

EARLY = "early stopping at epoch 4: no better val/top1 since epoch 2"


def test_a_run_that_stopped_early_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show_run(run_record(status="finished", reason=EARLY, seconds=3.0), "/runs/x")
    assert (
        "Early stopping at epoch 4: no better val/top1 since epoch 2; 16 epochs were planned."
        in capsys.readouterr().out
    )
    show_run(run_record(status="finished", seconds=3.0), "/runs/x")
    assert "planned" not in capsys.readouterr().out


def test_and_so_does_a_trial() -> None:
    record = run_record(status="finished", reason=EARLY, last={"val/top1": 0.5})
    assert end_of_part(record, "val/top1", "finished", None) == (f"50.0%, {EARLY}", "")
    whole = run_record(status="finished", last={"val/top1": 0.5})
    assert end_of_part(whole, "val/top1", "finished", None) == ("50.0% at the end", "")


def test_accuracy_by_attribute_rank_is_a_table_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    values = by_rank(0.6, "a")
    tests = {"test_cbl": {"top1": 0.5}, "test_gbl": {"top1": 0.5, **values}}
    show_run(run_record(status="finished", test=tests), "/runs/x")
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "few-shot" in line)
    numbers = [f"{100 * (values[f'attribute_rank/{rank}/few'] or 0):.1f}" for rank in ("majority", "second", "rare")]
    assert row.replace("│", " ").split() == ["few-shot", *numbers]
    assert "test_gbl, last epoch: by attribute rank" in shown
    make_sweep(tmp_path, seeds=2)
    record = SweepRecord.read(str(tmp_path))
    assert record is not None
    show_result(record, str(tmp_path), age=False)
    shown = capsys.readouterr().out
    assert "GLT: by attribute rank in the class, %" in shown and shown.count("difference") >= 4
    show_run(run_record(status="finished", test={"test": {"top1": 0.5}}), "/runs/x")
    assert "attribute rank" not in capsys.readouterr().out
