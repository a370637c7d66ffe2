"""What is trained after a search: with which seeds, on which split, once, and again where another trial won."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltcore.config.load import base_run
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.hashing import hash64
from ltcore.runtime.placement import Scaling
from ltcore.storage import join
from ltcore.training.run import Job
from ltcore.tuning import retrains
from ltcore.tuning.retrains import Retrains
from ltcore.tuning.runs import Runs
from tests.records import run_record

WINNER = {"objective.terms.lpa.weight": 0.5, "objective.terms.dro.radius": 2.0, "objective.terms.ifl.num_envs": 3}


class Desk(Runs):
    """Runs that come to a number made from their configuration, without training."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup, SimpleNamespace(), SimpleNamespace(), "heartbeat", "nonce", "demo")  # type: ignore[arg-type]
        self.ran: list[str] = []
        self.streamed: list[str] = []

    def run_all(self, jobs: dict[str, Job], streamed: str = "", engine: str = "") -> None:
        self.streamed += [streamed] if streamed else []
        assert not streamed or streamed in jobs
        for job in jobs.values():
            self.ran.append(job.run_uri.removeprefix(f"{self.setup.uri}/"))
            config = RunConfig.from_dict(job.config).to_flat()
            value = hash64(*(f"{key}={value}" for key, value in config.items() if key != "name")) / 2**64
            test = {split: {"top1": value} for split in ("test_gbl", "test_cbl")}
            run_record(status="finished", seed=config["seed"], config=config, test=test).write(job.run_uri)


class Silent:
    """A display that says nothing."""

    def stage(self, name: str, expected: int = 0) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def retrains_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    winner: Mapping[str, Any] = WINNER,
    *,
    splits: tuple[str, ...] = (),
    seed: int = 7,
) -> tuple[Retrains, Desk]:
    sweep = read_sweep(
        "tune_lpa", {"sweep.retrain_seeds": "2", "sweep.train_engine_retrain": "true", "seed": str(seed)}
    )
    setup: Any = SimpleNamespace(
        sweep=sweep,
        base=base_run(sweep),
        seed=seed,
        data_uri="data",
        uri=str(tmp_path),
        cluster=SimpleNamespace(local=True, gpus=0),
        placement=SimpleNamespace(engine="trial", scaling=Scaling()),
        own_input=False,
    )
    monkeypatch.setattr(retrains, "read_manifest", lambda _: SimpleNamespace(splits=dict.fromkeys(("train", *splits))))
    desk = Desk(setup)
    return Retrains(setup, desk, Silent(), winner), desk  # type: ignore[arg-type]


def config(tmp_path: Path, where: str) -> Mapping[str, Any]:
    record = RunRecord.read(join(str(tmp_path), where))
    assert record is not None
    return record.config


def test_the_seeds_that_choose_are_not_those_that_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch, {**WINNER, "seed": 7}, splits=("train_cbl",))
    found.pairs()
    found.balanced()
    found.ablation()
    seeds = {where: config(tmp_path, where)["seed"] for where in desk.ran}
    assert set(seeds.values()) == {8, 9}
    assert all(where.endswith(f"-seed{seed}") for where, seed in seeds.items())
    assert desk.streamed == ["winner-seed8"]


def test_alt_trains_winner_and_baseline_on_balanced_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch, splits=("train_cbl",))
    record = found.balanced()["balanced"]
    assert (
        desk.ran
        == [run.run_dir for run in record.runs]
        == [f"alt/{role}-seed{seed}" for seed in (8, 9) for role in ("winner", "baseline")]
    )
    assert {config(tmp_path, where)["data.train_split"] for where in desk.ran} == {"train_cbl"}
    assert config(tmp_path, "alt/winner-seed8")["objective.terms.dro.radius"] == 2.0
    assert config(tmp_path, "alt/baseline-seed8")["objective.terms.lpa"] is None
    assert record.comparison["test_gbl"]["top1"].num_seeds == 2


def test_data_without_balanced_classes_have_no_alt_and_are_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch)
    record = found.balanced()["balanced"]
    assert (desk.ran, record.runs, record.comparison) == ([], (), {})


def test_an_ablation_is_paired_with_the_retrains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch)
    found.pairs()
    rows = {(row.term, row.control): row for row in found.ablation()["ablation"]}
    assert list(rows) == [
        ("lpa", ""),
        ("lpa", "neighbor_mass=0"),
        ("dro", ""),
        ("ifl", ""),
        ("ifl", "tail_ratio=1"),
        ("ifl", "num_envs=1"),
    ]
    assert len(desk.ran) == 2 * 2 + 6 * 2
    alone, control = rows["lpa", ""], rows["lpa", "neighbor_mass=0"]
    assert alone.seeds == (8, 9) and alone.run_dirs == ("ablation/lpa-seed8", "ablation/lpa-seed9")
    tests = {where: RunRecord.read(join(str(tmp_path), where)) for where in desk.ran}
    values = {where: record.test["test_gbl"]["top1"] for where, record in tests.items() if record and record.test}
    cell = control.over_baseline["test_gbl"]["top1"]
    assert cell.winner == tuple(values[where] for where in control.run_dirs)
    assert cell.baseline == tuple(values[f"retrain/baseline-seed{seed}"] for seed in (8, 9))
    assert alone.term_over_control is None and control.term_over_control is not None
    over = control.term_over_control["test_gbl"]["top1"]
    assert (over.winner, over.baseline) == (alone.over_baseline["test_gbl"]["top1"].winner, cell.winner)


def test_nothing_is_trained_twice_and_another_winner_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of(winner: Mapping[str, Any]) -> list[str]:
        found, desk = retrains_of(tmp_path, monkeypatch, winner, splits=("train_cbl",))
        for part in (found.pairs, found.balanced, found.ablation):
            part()
        return desk.ran

    assert len(all_of(WINNER)) == 4 + 4 + 12
    assert all_of(WINNER) == []
    anew = all_of({**WINNER, "objective.terms.ifl.num_envs": 2})
    assert sorted({where.partition("-seed")[0] for where in anew}) == [
        "ablation/ifl",
        "ablation/ifl-tail_ratio1",
        "alt/winner",
        "retrain/winner",
    ], "what the other value does not touch stays"


def test_a_winner_of_one_term_is_that_term_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = {"objective.terms.dro": None, "objective.terms.ifl": None, "objective.terms.lpa.weight": 0.5}
    found, desk = retrains_of(tmp_path, monkeypatch, winner)
    pairs = found.pairs()
    before = len(desk.ran)
    term, control = found.ablation()["ablation"]
    assert term.run_dirs == ("retrain/winner-seed8", "retrain/winner-seed9")
    assert term.over_baseline == pairs["comparison"]
    assert desk.ran[before:] == list(control.run_dirs) == [f"ablation/lpa-neighbor_mass0-seed{s}" for s in (8, 9)]
