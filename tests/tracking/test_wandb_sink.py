"""Real offline W&B runs, without network or account, parsed back from the files that ``wandb sync`` would send."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from ltcore.errors import ConfigError
from ltcore.tracking.tracker import TrackerOptions, open_tracker, read_jsonl
from ltcore.tracking.wandb_sink import find_key, resolve_mode, wandb_id
from tests.tracking.wandb_file import read_offline_run

CONFIG = {"objective.terms.lpa.weight": 0.5, "optim.epochs": 3, "model.name": "resnet8", "data.canvas": None}
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
        "options": TrackerOptions(tensorboard=False),
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


def test_resuming_keeps_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "trial-1", 1, 2)
    train(tmp_path, "trial-1", 3, 4, config_flat=CONFIG | {"optim.epochs": 4})
    files = run_files(tmp_path)
    stored = [read_offline_run(path) for path in files]
    assert {run.run.run_id for run in stored} == {"trial-1"}
    epochs = [h["epoch"] for run in stored for h in run.history if "val/top1" in h]
    assert epochs == [1, 2, 3, 4]
    assert [row["epoch"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


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
            options=TrackerOptions(tensorboard=False),
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
    train(tmp_path, "trial-1", options=TrackerOptions(mode="offline"))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 3
    assert not any(SECRET.encode() in p.read_bytes() for p in files)


def test_disabled_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "trial-1", options=TrackerOptions(mode="disabled"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(tmp_path, "trial-1")
    assert not (tmp_path / "wandb").exists()


def test_unreachable_falls_back_to_offline_unless_online_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_init = wandb.init

    def init(**arguments: Any) -> Any:
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return real_init(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.warns(UserWarning, match=r"no route to host.*trial-1 is logged offline"):
        train(tmp_path / "auto", "trial-1")
    assert len(run_files(tmp_path / "auto")) == 1
    with pytest.raises(ConfigError, match="Set WANDB_API_KEY"):
        train(tmp_path / "online", "trial-2", options=TrackerOptions(mode="online", tensorboard=False))


def test_mode_follows_option_then_variable_then_key(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    empty = {"NETRC": str(netrc)}
    assert resolve_mode("auto", empty) == "offline"
    assert resolve_mode("auto", empty | {"WANDB_API_KEY": SECRET}) == "online"
    assert resolve_mode("auto", empty | {"WANDB_API_KEY": SECRET, "WANDB_MODE": "offline"}) == "offline"
    assert resolve_mode("offline", empty | {"WANDB_API_KEY": SECRET, "WANDB_MODE": "online"}) == "offline"
    netrc.write_text(f"machine wandb.example.org\n  login user\n  password {SECRET}\n")
    assert not find_key(empty)
    assert find_key(empty | {"WANDB_BASE_URL": "https://wandb.example.org:8080"})
    netrc.write_text("machine")
    with pytest.warns(UserWarning, match="is not a netrc file"):
        assert not find_key(empty)


def test_ids() -> None:
    assert wandb_id("sweep-a_trial.3") == "sweep-a_trial.3"
    ids = {wandb_id(name) for name in ("a/b", "a:b", "a-b", "x" * 200, "x" * 201)}
    assert len(ids) == 5
    assert all(len(i) <= 64 and "/" not in i and ":" not in i for i in ids)
