"""What stays behind is found wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import place

UNFINISHED = f".{'0' * 32}.run.json"


@pytest.mark.parametrize(
    "left",
    [
        "runs/small/.lease/a.json",
        "runs/small/trials/00000/.lease/a.json",
        "runs/small/trials/00000/checkpoints/.last-00000008.17/model.pt",
        "runs/small/trials/00000/checkpoints/best-00000008/.best-00000008.old.1/model.pt",
        f"runs/small/retrain/winner-seed1/a/b/{UNFINISHED}",
        "runs/small/.ltcore-doctor-1-a",
        "cache/canvases/cifar.partial/canvases.u8",
        "cache/shards/0.partial",
        "cache/datasets/.cifar.partial-0/old/manifest.json",
        "cache/datasets/.cifar.building-0/records/a.json",
        "cache/datasets/.cifar.building-0-1.gone/a.json",
        "cache/unpacked-1/ltcore.lock",
        f"cache/broken/{UNFINISHED}",
        "cache/runs/0/.lease/a.json",
    ],
)
def test_leases_and_halves_are_found(left: str, tmp_path: Path) -> None:
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).touch()
    with place("train.py", [], "small", tmp_path) as where, pytest.raises(AssertionError, match="halves that stay"):
        where.assert_clean()


def test_what_is_kept_and_what_the_next_command_removes_is_no_fault(tmp_path: Path) -> None:
    kept = ["runs/small/trials/00000/run.json", "runs/small/checkpoints/last-00000008/model.pt", "cache/runs/0/.lock"]
    removed = [
        f"runs/small/{UNFINISHED}",
        f"runs/small/trials/00000/tables/{UNFINISHED}",
        f"cache/weights/0/{UNFINISHED}",
    ]
    for name in (*kept, *removed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with place("train.py", [], "small", tmp_path) as where:
        where.assert_clean()
    assert [name for name in (*kept, *removed) if (tmp_path / name).exists()] == kept
