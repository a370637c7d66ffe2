"""What is shown of a finished run."""

from __future__ import annotations

import pytest

from ltcore.cli.console import show_run
from ltcore.tuning.messages import end_of_part
from tests.records import run_record

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
