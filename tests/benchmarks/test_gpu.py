"""The benchmark of the step on the device; nothing here looks at how fast it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltcore.benchmarks import gpu
from ltcore.benchmarks.options import Options
from ltcore.benchmarks.run import bench
from tests.benchmarks.documents import check_document


def test_bytes_are_those_of_what_is_read_and_written() -> None:
    a, b = torch.zeros(10, 10), torch.zeros(10, 10)
    with gpu.Traffic() as traffic:
        _ = a.t() + b
    assert traffic.bytes == 3 * 400


def test_parts_are_between_marks() -> None:
    clock = gpu.Clock(torch.device("cpu"))
    for _ in range(3):
        clock.mark()
    assert len(clock.milliseconds()) == 2
    assert min(clock.milliseconds()) >= 0


def test_the_step_on_this_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "bench.json"
    document = bench(Options(what="gpu", quick=True, output=str(output)))
    check_document(document, output)
    speed, split, traffic, fed = document["sections"]
    assert all(
        section["notes"][0].startswith("numbers of the CPU, since there is no GPU")
        for section in (speed, split, traffic, fed)
    )
    labels = [f"resnet8 16 px {precision}" for precision in gpu.precisions(torch.device("cpu"))]
    assert [(rung["name"], rung["peer"]) for rung in speed["rungs"]] == [(label, f"bare: {label}") for label in labels]
    for label in labels:
        shares = [rung["ratio"] for rung in split["rungs"] if rung["name"].startswith(f"{label}: ")]
        assert len(shares) == len(gpu.PARTS)
        assert sum(shares) == pytest.approx(1)
    assert [rung["peer"] for rung in traffic["rungs"]] == [f"{label}: step" for label in labels]
    assert all(rung["ratio"] > 0 for rung in traffic["rungs"])
    assert [(rung["name"], rung["peer"]) for rung in fed["rungs"]] == [
        (f"{label}: resident", f"{label}: from the host") for label in labels
    ]
