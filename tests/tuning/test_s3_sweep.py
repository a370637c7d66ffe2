"""A small sweep whose data and results are in an object store: everything a person asks for lies there afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ltcore.cli import parsers as cli
from ltcore.cli import tune as launch_sweep
from tests.tuning.sweeps import SPACE

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket, Server

pytest_plugins = ["tests.s3"]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = {
    **SPACE,
    "sweep.retrain_seeds": "1",
    "sweep.train_engine_retrain": "false",
    "train.epochs": "4",
    "train.batch_size": "8",
    "train.optim.warmup": "0",
    "model.ghost_batch": "4",
    "tracking.wandb_mode": "disabled",
}


def tune(bucket: Bucket) -> dict[str, Any]:
    words = [f"{key}={value}" for key, value in WORDS.items()]
    places = ["--data", f"{bucket.uri}/data", "--storage", f"{bucket.uri}/runs", "--name", "small"]
    record = launch_sweep.tune(cli.read_tune("test", [*words, *places]))
    assert record is not None
    return record.to_json()


def load(bucket: Bucket, key: str) -> dict[str, Any]:
    return json.loads(bucket.get(f"runs/small/{key}"))


@pytest.fixture(scope="module")
def finished(
    s3_server: Server, color_shards: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bucket, dict[str, Any]]:
    """A whole sweep; nothing but the store outlives it."""
    from tests.s3 import make_bucket

    with pytest.MonkeyPatch.context() as patch:
        s3_server.patch(patch)
        patch.setenv("LTCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        bucket = make_bucket(s3_server)
        for file in Path(color_shards).iterdir():
            bucket.put(f"data/{file.name}", file.read_bytes())
        result = tune(bucket)
    return bucket, result


def test_the_results_are_in_the_store(finished: tuple[Bucket, dict[str, Any]]) -> None:
    bucket, result = finished
    assert load(bucket, "sweep.json") == result
    assert result["status"] == "finished"
    trials = {trial["params"]["train.optim.lr"]: trial for trial in result["trials"]}
    assert result["winner"] == trials[0.05]["id"]
    records = {
        name: load(bucket, f"trials/{name}/run.json") for name in (*(t["id"] for t in trials.values()), "baseline")
    }
    assert records[trials[0.05]["id"]]["status"] == records["baseline"]["status"] == "finished"
    assert records[trials[1e-9]["id"]]["status"] == trials[1e-9]["status"]
    for role in ("winner", "baseline"):
        record = load(bucket, f"retrain/{role}-seed1/run.json")
        assert set(record["test"]) == {"test_cbl", "test_gbl"}
        for split, metrics in record["test"].items():
            compared = result["comparison"][
                split
            ]  # what one of both alone has, as class means with DRO, is not compared
            defined = {name: value for name, value in metrics.items() if value is not None and name in compared}
            assert defined.keys() >= {"top1", "balanced_accuracy", "macro_f1"}
            assert all(compared[name][role] == [value] for name, value in defined.items())


def test_the_report_in_the_store_shows_the_runs(finished: tuple[Bucket, dict[str, Any]]) -> None:
    bucket, result = finished
    page = bucket.get("runs/small/report.html").decode()
    assert all(trial["id"] in page for trial in result["trials"])
    assert "winner-seed1" in page


def test_each_finished_run_left_a_checkpoint_that_predicts(
    finished: tuple[Bucket, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import ltcore

    bucket, result = finished
    bucket.server.patch(monkeypatch)
    for place in (f"trials/{result['winner']}", "retrain/winner-seed1"):
        predictor = ltcore.load(f"{bucket.uri}/runs/small/{place}")
        probabilities = predictor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        assert probabilities.sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_the_same_command_shows_the_stored_result(
    finished: tuple[Bucket, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, result = finished
    bucket.server.patch(monkeypatch)
    before = len(bucket.server.requests.seen)
    assert tune(bucket) == result
    assert "stored result" in capsys.readouterr().out
    assert {method for method, _ in bucket.server.requests.seen[before:]} <= {"GET", "HEAD"}
