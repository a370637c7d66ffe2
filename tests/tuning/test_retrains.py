"""What is trained after a search: with which seeds, on which split, once, and again where another trial won."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from ltcore.config.json_record import RecordFile
from ltcore.config.load import base_run
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.errors import LtcoreError
from ltcore.hashing import hash64
from ltcore.runtime.placement import Scaling
from ltcore.storage import join
from ltcore.training.run import Job
from ltcore.tuning import retrains, runs
from ltcore.tuning import sweep as driver
from ltcore.tuning.retrains import Retrains
from ltcore.tuning.runs import Runs
from tests.records import run_record, sweep_record, trial_record

WINNER: dict[str, Any] = {
    "objective.terms.lpa.weight": 0.5,
    "objective.terms.dro.radius": 2.0,
    "objective.terms.ifl.num_envs": 3,
}


OTHERS = {
    "00005": {**WINNER, "objective.terms.lpa.weight": 1.5, "objective.terms.dro.radius": 0.5},
    "00002": {**WINNER, "objective.terms.lpa.weight": 0.2, "objective.terms.ifl.num_envs": 1},
}
"""Trials besides the winner, the best first."""
TRIED = ["lpa-trial00000", "lpa-trial00005", "lpa-trial00002", "dro-trial00000", "dro-trial00005"]
"""Terms alone with the settings of these trials: IFL has one that is not its own control."""


class Desk(Runs):
    """Runs that come to a number made from their configuration, without training."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup, SimpleNamespace(), SimpleNamespace(), "heartbeat", "nonce", "demo")  # type: ignore[arg-type]
        self.ran: list[str] = []
        self.streamed: list[str] = []
        self.broken: set[str] = set()
        """Labels of jobs that fail for good."""

    def run_all(self, jobs: dict[str, Job], streamed: str = "", engine: str = "", *, may_fail: bool = False) -> None:
        self.streamed += [streamed] if streamed else []
        assert not streamed or streamed in jobs
        for job in jobs.values():
            self.ran.append(job.run_uri.removeprefix(f"{self.setup.uri}/"))
            config = RunConfig.from_dict(job.config).to_flat()
            value = hash64(*(f"{key}={value}" for key, value in config.items() if key != "name")) / 2**64
            common: Any = {"seed": config["seed"], "config": config, "kind": job.info.kind}
            if job.label in self.broken:
                assert may_fail
                common |= {"status": "failed", "reason": "NumericError: nan", "retryable": False}
            else:
                test = {split: {"top1": value} for split in ("test_gbl", "test_cbl")} if job.info.test else None
                common |= {"status": "finished", "last": {"val/balanced_accuracy": value}, "test": test}
            run_record(**common).write(job.run_uri)


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
    others: Mapping[str, Mapping[str, Any]] = {},
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
    return Retrains(setup, desk, Silent(), winner, {"00000": winner, **others}), desk  # type: ignore[arg-type]


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


def test_each_term_alone_has_the_setting_that_is_best_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch, others=OTHERS)
    found.pairs()
    rows = {(row.term, row.control): row for row in found.ablation()["ablation"]}
    tried = [f"ablation/{name}-seed7" for name in TRIED]
    assert desk.ran[4:9] == tried and len(desk.ran) == 4 + 5 + 12
    values = {}
    for place in tried:
        record = RunRecord.read(join(str(tmp_path), place))
        assert record is not None and record.test is None, "what chooses is not tested"
        values[place] = record.last["val/balanced_accuracy"]
    for term, option in (("lpa", "weight"), ("dro", "radius")):
        row, key = rows[term, ""], f"objective.terms.{term}.{option}"
        assert row.settings is not None and [setting.value for setting in row.settings] == sorted(
            (value for place, value in values.items() if f"/{term}-" in place), reverse=True
        )
        best = row.settings[0]
        assert best.value == values[best.run_dir] and best.params == {key: {"00000": WINNER, **OTHERS}[best.trial][key]}
        for name in [name for name in rows if name[0] == term]:
            assert config(tmp_path, rows[name].run_dirs[0])[key] == rows[name].changes[key] == best.params[key]
    assert rows["ifl", ""].settings == rows["lpa", "neighbor_mass=0"].settings is None
    assert rows["ifl", ""].changes["objective.terms.ifl.num_envs"] == 3


def test_settings_are_those_of_trials_with_a_value_the_best_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[dict[str, Any]] = []

    def hear(*args: Any) -> Any:
        heard.append(args[-1])
        return SimpleNamespace(pairs=dict, ablation=dict)

    monkeypatch.setattr(driver, "Retrains", hear)
    key = "objective.terms.lpa.weight"
    outcomes = {
        "00000": ("stopped", 0.5),
        "00001": ("finished", 0.6),
        "00002": ("failed", 0.9),
        "00003": ("finished", 0.7),
        "00004": ("finished", None),
        "00005": ("stopped", 0.8),
    }
    trials = tuple(
        trial_record(name, status=status, last=last, params={key: float(name)})
        for name, (status, last) in outcomes.items()
    )
    sweep = driver.Sweep.__new__(driver.Sweep)
    asked: Any = SimpleNamespace(sweep=read_sweep("tune_lpa", {"sweep.ablation": "true", "sweep.alt": "false"}))
    sweep.setup, sweep.runs, sweep.display = asked, Mock(), Mock()
    sweep.file = RecordFile(tmp_path, sweep_record(space={key: "log:0.1,9"}, trials=trials, winner="00003"))
    sweep.save = sweep.file.update  # type: ignore[method-assign]
    sweep.retrain()
    assert [list(found.items()) for found in heard] == [
        [(name, {key: float(name)}) for name in ("00003", "00001", "00005", "00000")]
    ]


def test_an_ablation_that_was_interrupted_trains_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = retrains_of(tmp_path, monkeypatch, others=OTHERS)
    found.pairs()
    whole = found.ablation()
    for place in ("ablation/dro-trial00005-seed7", "ablation/ifl-seed9"):
        (tmp_path / place / "run.json").unlink()
    again, desk = retrains_of(tmp_path, monkeypatch, others=OTHERS)
    assert again.ablation() == whole
    assert desk.ran == ["ablation/dro-trial00005-seed7", "ablation/ifl-seed9"]


def test_a_setting_that_fails_for_good_is_not_chosen_nor_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch, others=OTHERS)
    found.pairs()
    desk.broken = {"dro-trial00000-seed7", "lpa-trial00005-seed7"}
    rows = {row.term: row for row in found.ablation()["ablation"] if not row.control}
    assert [setting.trial for setting in rows["dro"].settings] == ["00005"]
    assert {setting.trial for setting in rows["lpa"].settings} == {"00000", "00002"}
    assert rows["dro"].changes["objective.terms.dro.radius"] == 0.5
    again, desk = retrains_of(tmp_path, monkeypatch, others=OTHERS)
    assert again.ablation() and desk.ran == []


def test_a_term_that_no_setting_brings_to_its_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, desk = retrains_of(tmp_path, monkeypatch, others=OTHERS)
    desk.broken = {"dro-trial00000-seed7", "dro-trial00005-seed7"}
    with pytest.raises(LtcoreError, match=r"^sweep.ablation=true trains dro alone, .* \(NumericError: nan\)"):
        found.ablation()


def test_a_single_term_that_is_its_own_control_in_the_winner_is_trained_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "objective.terms.ifl.num_envs"
    winner = {"objective.terms.lpa": None, "objective.terms.dro": None, key: 1}
    found, desk = retrains_of(tmp_path, monkeypatch, winner, others={"00001": {**winner, key: 2}})
    found.pairs()
    rows = found.ablation()["ablation"]
    assert [(row.control, row.changes[key]) for row in rows] == [("", 2), ("tail_ratio=1", 2), ("num_envs=1", 1)]
    assert rows[0].run_dirs[0] == "ablation/ifl-seed8"
    assert not any("-seed7" in place for place in desk.ran), "one setting is no choice"


def test_a_run_that_may_fail_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, desk = retrains_of(tmp_path, monkeypatch)
    said: list[Any] = []
    desk.display = SimpleNamespace(ended=lambda name, *parts: said.extend(parts))  # type: ignore[assignment]
    desk.watch = SimpleNamespace(  # type: ignore[assignment]
        touch=lambda: None, stop_wanted=False, saving=threading.Event(), stalled=threading.Event()
    )
    monkeypatch.setattr(runs.ray, "wait", lambda refs, timeout: (refs, []))

    def broken(ref: Any) -> Any:
        raise LtcoreError("loss is nan")

    monkeypatch.setattr(runs, "result_of", broken)
    job = desk.job("ablation/lpa-trial00000-seed7", 7, "trial", {})
    for retryable, may_fail in ((False, False), (True, True), (False, True)):
        run_record(status="failed", reason="loss is nan", retryable=retryable).write(job.run_uri)
        desk._submitted = {1: (job, "trial", Scaling())}
        running: dict[Any, str] = {1: job.label}
        if may_fail and not retryable:
            desk.wait_any(running, may_fail=may_fail)
        else:
            with pytest.raises(LtcoreError, match="loss is nan"):
                desk.wait_any(running, may_fail=may_fail)
    assert running == {} and said == ["lpa-trial00000-seed7: ", ("failed (loss is nan)", "red")]


def test_a_winner_of_one_term_is_that_term_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = {"objective.terms.dro": None, "objective.terms.ifl": None, "objective.terms.lpa.weight": 0.5}
    others = {"00001": {**winner, "objective.terms.lpa.weight": 0.9}}
    found, desk = retrains_of(tmp_path, monkeypatch, winner, others=others)
    pairs = found.pairs()
    before = len(desk.ran)
    term, control = found.ablation()["ablation"]
    assert term.run_dirs == ("retrain/winner-seed8", "retrain/winner-seed9")
    assert term.over_baseline == pairs["comparison"]
    assert desk.ran[before:] == list(control.run_dirs) == [f"ablation/lpa-neighbor_mass0-seed{s}" for s in (8, 9)]
