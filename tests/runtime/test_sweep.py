"""A real sweep, small: a stop by ASHA, paired retrains, report, W&B, second run, refusal of another configuration."""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

import pytest

from ltcore.errors import ConfigError
from tests.runtime.sweeps import runs, tune

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
        result = tune(color_shards, storage, "--cpus-per-worker", "2", sweep__retrain_seeds="2")
    return storage, result


def test_asha_stops_the_bad_trial_and_the_good_one_wins(finished: tuple[Path, dict[str, Any]]) -> None:
    storage, result = finished
    trials = {t["params"]["train.optim.lr"]: t for t in result["trials"]}
    assert trials[0.05]["status"] == "finished"
    assert trials[0.05]["epochs_done"] == 8
    assert trials[1e-9]["status"] == "stopped"
    assert trials[1e-9]["epochs_done"] < 8
    assert result["winner"] == trials[0.05]["id"]
    records = runs(storage, "trials")
    assert records[trials[1e-9]["id"]]["status"] == "stopped"
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
    assert [(r["world"], r["data"]["tier"], r["seed"]) for r in through_train] == [(2, "stream", 1)]
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
        assert len(offline) == 1, run_dir
        assert list(offline[0].glob("*.wandb")), run_dir


def test_the_same_command_shows_the_stored_result(
    finished: tuple[Path, dict[str, Any]], color_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, result = finished
    again = tune(color_shards, storage, "--cpus-per-worker", "2", sweep__retrain_seeds="2")
    assert again["winner"] == result["winner"]
    assert "stored result" in capsys.readouterr().out


def test_another_configuration_under_the_same_name_is_refused(
    finished: tuple[Path, dict[str, Any]], color_shards: str
) -> None:
    with pytest.raises(ConfigError, match=r"train.epochs: 8 there, 9 now.*--name"):
        tune(color_shards, finished[0], sweep__retrain_seeds="2", train__epochs="9")
