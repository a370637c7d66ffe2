"""Real offline W&B runs, without network or account, parsed back from the files that ``wandb sync`` would send."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltcore.errors import ConfigError, RemovedError
from ltcore.storage import read_jsonl
from ltcore.tracking import wandb_sink
from ltcore.tracking.config import TrackingConfig
from ltcore.tracking.tracker import open_tracker
from ltcore.tracking.wandb_service import end_service
from ltcore.tracking.wandb_sink import wandb_id
from tests.tracking.wandb_file import read_offline_run, records
from tests.tracking.wandb_server import CLOSES, serve

CONFIG = {"objective.terms.lpa.weight": 0.5, "optim.epochs": 3, "model.name": "resnet8", "data.image_size": None}
SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in list(os.environ):
        if name.startswith("WANDB_") and name != "WANDB_SERVICE":
            monkeypatch.delenv(name)
    yield
    assert not (home / ".local").exists(), "something was staged outside the run directory"


def train(run_dir: Path, run_id: str, first: int = 1, last: int = 3, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "run_dir": run_dir,
        "run_id": run_id,
        "group": "sweep-a",
        "name": f"name of {run_id}",
        "config_flat": CONFIG,
        "options": TrackingConfig(tensorboard=False),
        "job_type": "trial",
        "resume_step": 10 * (first - 1),
    }
    tracker = open_tracker(**(arguments | changes))
    for epoch in range(first, last + 1):
        tracker.log({"epoch": epoch, "val/top1": epoch / 7, "val/few": None}, step=10 * epoch)
    tracker.table("per_class/test", ["class", "accuracy"], [["zero", 0.25], ["one", None], [2, 1]])
    tracker.finish({"best/val/top1": 3 / 7, "last/val/top1": 3 / 7}, "finished")


def run_files(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))


def test_an_offline_run_is_complete(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "sweep-a-trial-1")
    (path,) = run_files(tmp_path)
    stored = read_offline_run(path)
    assert path.name == "run-sweep-a-trial-1.wandb"
    assert (stored.run.run_id, stored.run.run_group, stored.run.display_name, stored.run.job_type) == (
        "sweep-a-trial-1",
        "sweep-a",
        "name of sweep-a-trial-1",
        "trial",
    )
    assert stored.config == CONFIG
    scalars = [(h["_step"], h["epoch"], h["val/top1"]) for h in stored.history if "val/top1" in h]
    assert scalars == [(10, 1, 1 / 7), (20, 2, 2 / 7), (30, 3, 3 / 7)]
    assert not any("val/few" in h for h in stored.history)
    assert stored.summary["best/val/top1"] == stored.summary["val/top1"] == 3 / 7
    assert stored.summary["status"] == "finished"
    assert stored.exit_code == 0
    (media,) = path.parent.glob("files/media/table/per_class/*.table.json")
    table = json.loads(media.read_text())
    assert (table["columns"], table["data"]) == (["class", "accuracy"], [["zero", 0.25], ["one", None], [2, 1]])
    assert stored.staged
    assert all(p.is_file() and p.is_relative_to(tmp_path) for p in stored.staged)
    assert capfd.readouterr() == ("", "")


def test_charts_are_those_of_wandb(tmp_path: Path) -> None:
    (sink,) = open_sink(tmp_path)
    classes, counts = ["ant", "bee \x1b[31m"], [[3, 1], [0, 2]]
    sink.confusion("test/last/confusion", classes, counts)
    sink.bars("test/last/recall", "class", "recall", [("ant", 0.75), ("bee", 1.0)])
    sink.finish({}, "finished")
    (path,) = run_files(tmp_path)
    stored = read_offline_run(path)
    tables = {
        str(file.relative_to(path.parent / "files/media/table")): file for file in path.parent.rglob("*.table.json")
    }
    (confusion,) = (json.loads(file.read_text()) for name, file in tables.items() if "confusion" in name)
    assert confusion["columns"] == ["Actual", "Predicted", "nPredictions"]
    assert [row[2] for row in confusion["data"]] == [3, 1, 0, 2]
    assert [row[:2] for row in confusion["data"][:2]] == [["ant", "ant"], ["ant", classes[1]]]
    (bars,) = (json.loads(file.read_text()) for name, file in tables.items() if "recall" in name)
    assert (bars["columns"], bars["data"]) == (["class", "recall"], [["ant", 0.75], ["bee", 1.0]])
    shown = {chart["panel_config"]["panelDefId"] for chart in charts(path)}
    assert shown == {"wandb/confusion_matrix/v1", "wandb/bar/v0"}
    assert all(p.is_relative_to(tmp_path) for p in stored.staged)


def charts(path: Path) -> list[Any]:
    """What W&B draws its charts by, as the run's configuration tells it."""
    updates = [
        u for record in records(path) if record.WhichOneof("record_type") == "config" for u in record.config.update
    ]
    found = [json.loads(u.value_json) for u in updates if "visualize" in [u.key, *u.nested_key]]
    return found


def test_resuming_keeps_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "trial-1", 1, 2)
    train(tmp_path, "trial-1", 3, 4, config_flat=CONFIG | {"optim.epochs": 4})
    files = run_files(tmp_path)
    stored = [read_offline_run(path) for path in files]
    assert {run.run.run_id for run in stored} == {"trial-1"}
    epochs = [h["epoch"] for run in stored for h in run.history if "val/top1" in h]
    assert epochs == [1, 2, 3, 4]
    assert [row["epoch"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("error")
def test_a_run_whose_folder_is_removed_is_not_brought_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given: dict[str, Any] = {"run_dir": folder, "run_id": "trial-1", "group": "", "name": "n", "config_flat": CONFIG}
    tracker = open_tracker(**given, options=TrackingConfig())
    tracker.log({"epoch": 1}, step=10)
    shutil.rmtree(folder)
    with pytest.raises(RemovedError, match=r"metrics\.jsonl was removed"):
        tracker.log({"epoch": 2}, step=20)
    with pytest.raises(RemovedError):
        tracker.table("recall", ["class"], [["one"]])
    tracker.finish({"best": 0.5}, "running")
    assert not folder.exists()


def test_runs_one_after_another_and_in_threads_stay_apart(tmp_path: Path) -> None:
    train(tmp_path / "a", "trial-a")
    threads = [threading.Thread(target=train, args=(tmp_path / name, f"trial-{name}")) for name in "bc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abc":
        (path,) = run_files(tmp_path / name)
        stored = read_offline_run(path)
        assert stored.run.run_id == f"trial-{name}"
        assert [h["epoch"] for h in stored.history if "val/top1" in h] == [1, 2, 3]


def test_only_rank_0_has_a_run_and_a_page_goes_with_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<!doctype html><p>the report</p>")
    for rank in (0, 1):
        tracker = open_tracker(
            run_dir=tmp_path / "sweep",
            run_id="sweep-1",
            group="g",
            name="n",
            config_flat={},
            options=TrackingConfig(tensorboard=False),
            rank=rank,
        )
        tracker.html("report", page)
        tracker.finish({}, "failed")
    (path,) = run_files(tmp_path / "sweep")
    assert read_offline_run(path).exit_code == 1
    (media,) = path.parent.glob("files/media/html/*.html")
    assert media.read_text() == page.read_text()


def test_no_secret_reaches_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    train(tmp_path, "trial-1", options=TrackingConfig(wandb_mode="offline"))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 3
    assert not any(SECRET.encode() in p.read_bytes() for p in files)


def test_disabled_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "trial-1", options=TrackingConfig(wandb_mode="disabled"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(tmp_path, "trial-1")
    assert not (tmp_path / "wandb").exists()


def refuses_runs(operation: str) -> int:
    """Takes the key, and no run."""
    return 200 if operation == "Viewer" else 401


@pytest.fixture
def own_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads its variables once in a process."""
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")  # known to monkeypatch: what the code sets on the way goes when the test ends
    end_service()
    yield
    end_service()


@pytest.mark.usefixtures("own_service")
def test_a_run_that_wandb_refuses_after_it_took_the_key_is_logged_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with serve(refuses_runs) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with pytest.raises(ConfigError, match=r"tracking.wandb_mode='online'.*401"):
            train(tmp_path / "online", "trial-2", options=TrackingConfig(wandb_mode="online", tensorboard=False))
        end_service()
        with pytest.warns(UserWarning, match=r"401.*run trial-1 is logged offline"):
            train(tmp_path / "first", "trial-1")
        asked = len(server.asked)
        train(tmp_path / "next", "trial-3")
        assert len([name for name in server.asked[asked:] if not name.startswith("/")]) == 0, "once is enough"
    for run in ("first", "next"):
        (path,) = run_files(tmp_path / run)
        stored = read_offline_run(path)
        assert [h["epoch"] for h in stored.history if "val/top1" in h] == [1, 2, 3]
        assert (stored.summary["status"], stored.exit_code) == ("finished", 0)


@pytest.mark.usefixtures("own_service")
def test_a_run_goes_online_and_its_end_does_not_wait_for_a_server_that_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "UPLOAD_TIMEOUT_S", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    gone = threading.Event()
    with serve(lambda _: CLOSES if gone.is_set() else 200) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        (sink,) = open_sink(tmp_path / "sent")
        sink.log({"epoch": 1, "val/top1": 0.25}, step=10)
        sink.finish({}, "finished")
        assert {"UpsertBucket", "/files/me/p/trial-a/file_stream"} <= set(server.asked)
        (sink,) = open_sink(tmp_path / "kept")
        sink.log({"epoch": 1, "val/top1": 0.5}, step=10)
        gone.set()
        with pytest.warns(UserWarning, match=r"within 1 s: `wandb sync .*kept/wandb/run-.*uploads the rest"):
            sink.finish({}, "finished")
    (path,) = (tmp_path / "kept").glob("wandb/run-*/run-*.wandb")
    stored = read_offline_run(path)
    assert [h["epoch"] for h in stored.history] == [1]
    assert stored.exit_code == 0


def open_sink(run_dir: Path) -> list[Any]:
    names = {"run_id": "trial-a", "group": "g", "name": "n", "job_type": "trial"}
    return wandb_sink.open_wandb(run_dir=run_dir, config_flat=CONFIG, options=TrackingConfig(), **names)


def kill_service() -> None:
    """What happens to W&B's own process when memory is short."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = stat.read_text().partition(")")
            if "wandb-core" in name and int(rest.split()[1]) == os.getpid():
                os.kill(int(stat.parent.name), signal.SIGKILL)


@pytest.mark.usefixtures("own_service")
def test_a_run_whose_service_dies_goes_on_in_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", short := tempfile.mkdtemp(prefix="lt", dir="/tmp"))
    (sink,) = open_sink(tmp_path)
    sink.log({"epoch": 1, "val/top1": 0.25}, step=10)
    (first,) = Path(short).glob("wandb-[0-9]*")
    kill_service()
    with pytest.warns(UserWarning, match="run trial-a is logged offline from here on") as warned:
        for step in range(20, 200):
            sink.log({"epoch": 2, "val/top1": 0.5}, step)
            if any("from here on" in str(warning.message) for warning in warned):
                break
            time.sleep(0.05)  # what is written before the connection is known to be lost is lost as well
    (second,) = Path(short).glob("wandb-[0-9]*")
    assert second != first, "what the killed one left is gone"
    sink.table("per_class/test", ["class"], [["zero"]])
    sink.finish({"last": 0.5}, "finished")
    end_service()
    shutil.rmtree(short)
    stored = read_offline_run(run_files(tmp_path)[-1])
    assert stored.run.run_id == "trial-a"
    assert [h["epoch"] for h in stored.history if "epoch" in h] == [2]
    assert (stored.summary["last"], stored.exit_code, len(stored.staged)) == (0.5, 0, 1)


@pytest.mark.usefixtures("own_service")
def test_a_run_whose_service_dies_again_goes_on_without_it(tmp_path: Path) -> None:
    (sink,) = open_sink(tmp_path)
    with pytest.warns(UserWarning, match=r"the first time.* is logged offline from here on"):
        sink.reopen(ConnectionResetError("the first time"))
    kill_service()
    with pytest.warns(UserWarning, match=r"run trial-a continues without W&B; metrics.jsonl has its numbers"):
        sink.finish({"last": 0.5}, "finished")
    assert not sink.is_open
    sink.log({"epoch": 3}, step=30)


@pytest.mark.usefixtures("own_service")
def test_a_service_that_is_gone_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/nowhere/socket")
    with pytest.warns(UserWarning, match=r"/nowhere/socket.*run trial-a is logged offline from here on"):
        (sink,) = open_sink(tmp_path)
    sink.finish({"last": 0.5}, "finished")
    assert read_offline_run(run_files(tmp_path)[-1]).summary["last"] == 0.5


@pytest.mark.usefixtures("own_service")
def test_where_wandb_can_write_nothing_the_run_goes_on_without_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="run trial-1 continues without W&B"):
        train(tmp_path / "run", "trial-1")
    assert [row["epoch"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_ids() -> None:
    assert wandb_id("sweep-a_trial.3") == "sweep-a_trial.3"
    ids = {wandb_id(name) for name in ("a/b", "a:b", "a-b", "x" * 200, "x" * 201)}
    assert len(ids) == 5
    assert all(len(i) <= 64 and "/" not in i and ":" not in i for i in ids)
