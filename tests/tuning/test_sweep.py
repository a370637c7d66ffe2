"""A real sweep, small: a stop at a rung, paired retrains, report, W&B, second run, refusal of another configuration."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from ltcore.errors import ConfigError
from tests.tuning.sweeps import runs, tune

FOUR = {
    "sweep__space__train__optim__lr": "grid:0.05,0.04,0.03,1e-9",
    "sweep__retrain_seeds": "2",
    "sweep__train_engine_retrain": "true",
}

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


class Numbers(html.parser.HTMLParser):
    """(run, metric, value) of everything in a report that claims to be a number of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, float]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = dict(attrs)
        if at.get("data-run") and at.get("data-metric") and at.get("data-value"):
            self.found.append((str(at["data-run"]), str(at["data-metric"]), float(str(at["data-value"]))))


@pytest.fixture(scope="module")
def finished(color_shards: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole sweep with the in-process engine, W&B offline, one retrain through Ray Train with two workers."""
    storage = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCORE_CACHE", str(storage / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        result = tune(color_shards, storage, "--cpus-per-worker", "2", **FOUR)
    return storage, result


def test_of_four_trials_the_worst_is_stopped_with_evidence_and_three_reach_the_end(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    storage, result = finished
    trials = {t["params"]["train.optim.lr"]: t for t in result["trials"]}
    records = runs(storage, "trials")
    bad = trials.pop(1e-9)
    assert [(t["status"], t["epochs_done"]) for t in trials.values()] == [("finished", 8)] * 3
    best = max(t["last"] for t in trials.values())
    assert result["winner"] == min(t["id"] for t in trials.values() if t["last"] == best)
    (decision,) = result["rungs"]
    assert [place["id"] for place in decision["trials"] if not place["goes_on"]] == [bad["id"]]
    assert (bad["status"], bad["epochs_done"], bad["decision"]["rank"]) == ("stopped", 4, 4)
    record = records[bad["id"]]
    assert record["reason"] == "stopped after epoch 4: rank 4 of 4, the best 3 went on"
    assert record["decision"]["value"] == record["last"]["val/balanced_accuracy"]
    for trial in trials.values():
        rows = (storage / "small" / trial["run_dir"] / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == list(range(1, 9)), "no epoch is trained twice"
    assert records["baseline"]["epochs_done"] == 8
    assert records["baseline"]["config"]["objective.terms.lpa"] is None


def test_trials_never_see_the_test_split(finished: tuple[Path, dict[str, Any]]) -> None:
    for name, record in runs(finished[0], "trials").items():
        assert "test" not in record, name
    for name, record in runs(finished[0], "retrain").items():
        assert set(record["test"]) == {"test_cbl", "test_gbl"}, name


def test_retrains_are_paired_and_one_went_through_ray_train(finished: tuple[Path, dict[str, Any]]) -> None:
    records = runs(finished[0], "retrain")
    assert set(records) == {f"{role}-seed{s}" for role in ("winner", "baseline") for s in (1, 2)}
    through_train = [r for r in records.values() if r["engine"] == "train"]
    assert [(r["world"], r["data"]["loader"], r["seed"]) for r in through_train] == [(2, "ray", 1)]
    for metric, value in finished[1]["comparison"]["test_gbl"].items():
        winner = [records[f"winner-seed{s}"]["test"]["test_gbl"][metric] for s in (1, 2)]
        assert value["winner"] == winner


def recorded(record: dict[str, Any], metric: str) -> Any:
    """What a run file says about a metric of the report."""
    section, _, name = metric.partition("/")
    if section == "params":
        return record["config"][name]
    if section in record.get("test", {}):
        return record["test"][section][name]
    return record[metric] if metric in record else record["last"][metric]


def test_every_number_of_the_report_is_that_of_a_run_file(finished: tuple[Path, dict[str, Any]]) -> None:
    storage, _ = finished
    page = Numbers()
    page.feed((storage / "small" / "report.html").read_text())
    records = {**runs(storage, "trials"), **runs(storage, "retrain")}
    single = [number for number in page.found if number[0] in records]
    assert len(single) > 20
    for run, metric, value in single:
        assert recorded(records[run], metric) == value, (run, metric)
    assert {run for run, _, _ in single} >= set(records) - {"baseline"}


def test_the_report_tells_where_the_time_went(finished: tuple[Path, dict[str, Any]]) -> None:
    storage, result = finished
    text = (storage / "small" / "report.html").read_text()
    assert {"start Ray", "data", "search", "retrain"} <= set(result["stages"])
    assert result["stages"]["search"] > 1
    assert "Time per stage" in text and "retrain" in text
    assert "took" in text


def test_one_wandb_run_per_trial_also_with_two_workers(finished: tuple[Path, dict[str, Any]]) -> None:
    storage, result = finished
    for run_dir in [*(t["run_dir"] for t in result["trials"]), "retrain/winner-seed1", "sweep"]:
        offline = list((storage / "small" / run_dir / "wandb").glob("offline-run-*"))
        parts = 2 if run_dir in {t["run_dir"] for t in result["trials"] if t["status"] == "finished"} else 1
        assert len(offline) == parts, run_dir  # W&B writes a file per start, and uploads them as one run by their id
        assert len({folder.name.split("-", 3)[3] for folder in offline}) == 1, run_dir
        assert all(list(folder.glob("*.wandb")) for folder in offline), run_dir


def test_the_same_command_shows_the_stored_result(
    finished: tuple[Path, dict[str, Any]], color_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, result = finished
    again = tune(color_shards, storage, "--cpus-per-worker", "2", **FOUR)
    assert again["winner"] == result["winner"]
    assert "stored result" in capsys.readouterr().out


def test_another_configuration_under_the_same_name_is_refused(
    finished: tuple[Path, dict[str, Any]], color_shards: str
) -> None:
    with pytest.raises(ConfigError, match=r"train.epochs: 8 there, 9 now.*--name"):
        tune(color_shards, finished[0], **FOUR, train__epochs="9")
