"""Runs whose directory is in an object store: the same bits, continued on any node, never half a checkpoint there."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import ltcore
from ltcore import retry, storage
from ltcore.errors import CheckpointError, DataError
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import Interrupted, LocalContext, StopRequested
from ltcore.training.run import scratch_dir
from ltcore.training.sync import RunSync
from tests.flaky import Flaky, flaky
from tests.paths import ROOT
from tests.training.runs import TERMS, StopAfter, Told, WholeRun, assert_equal_runs, run, tiny_run

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]
FILES = {"last": {"model.pt", "state.pt", "meta.json"}, "best": {"model.pt", "meta.json"}}


@pytest.fixture
def another_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process one of the node of that name, which has a disk of its own."""

    def move(name: str) -> None:
        monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / f"disk-of-{name}"))

    return move


def checkpoints(keys: list[str]) -> dict[str, set[str]]:
    """Folder of each checkpoint among the keys of a run -> files in it."""
    found: dict[str, set[str]] = {}
    for parts in (key.split("/") for key in keys):
        if "checkpoints" in parts:
            found.setdefault(parts[-2], set()).add(parts[-1])
    return found


def assert_best_and_last_alone(bucket: Bucket, prefix: str) -> None:
    found = checkpoints(bucket.names(f"{prefix}/"))
    assert sorted(name.split("-")[0] for name in found) == ["best", "last"]
    assert all(files == FILES[name.split("-")[0]] for name, files in found.items())


def record_of(bucket: Bucket, prefix: str) -> dict[str, Any]:
    return json.loads(bucket.get(f"{prefix}/run.json"))


def test_the_run_directory_is_in_the_store_and_its_bits_are_those_of_a_local_run(
    bucket: Bucket, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = tiny_run(**TERMS, tracking__wandb=True, tracking__tensorboard=True, train__checkpoint_every_s=0.001)
    uri, discard = f"{bucket.uri}/runs/tiny", RunSync.discard

    def note(sync: RunSync) -> None:
        if sync.remote and not (tmp_path / "mine").exists():
            shutil.copytree(sync.local, tmp_path / "mine")
        discard(sync)

    monkeypatch.setattr(RunSync, "discard", note)
    record = run(cfg, tiny_shards, uri)
    assert record == record_of(bucket, "runs/tiny")
    assert record["status"] == "finished"
    for _ in range(2):  # what is whole there takes no room here, also after it was asked for again
        assert not {path.name for path in scratch_dir(uri).iterdir()} & {"checkpoints", "run.json"}
        assert run(cfg, tiny_shards, uri) == record
    local = run(cfg, tiny_shards, tmp_path / "local")
    assert record["test"] == local["test"]
    copy = bucket.download("runs/tiny", tmp_path / "copy")
    assert_equal_runs(tmp_path / "local", copy)
    assert_best_and_last_alone(bucket, "runs/tiny")
    assert (copy / "config.yaml").read_bytes() == (tmp_path / "local" / "config.yaml").read_bytes()
    logs = list((copy / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 1
    mine = next((tmp_path / "mine" / "wandb").glob("offline-run-*/*.wandb"))
    assert logs[0].read_bytes() == mine.read_bytes()
    assert list((copy / "tensorboard").glob("events.*"))
    assert not [key for key in bucket.names() if any(part.startswith(".") for part in key.split("/"))]


def test_data_and_run_in_the_store_need_no_local_file(bucket: Bucket, tiny_shards: str, tmp_path: Path) -> None:
    for file in Path(tiny_shards).iterdir():
        bucket.put(f"data/{file.name}", file.read_bytes())
    for kind in ("cache", "threads"):
        run(tiny_run(data__loader=kind), f"{bucket.uri}/data", f"{bucket.uri}/{kind}")
    run(tiny_run(), tiny_shards, tmp_path / "local")
    for kind in ("cache", "threads"):
        assert_equal_runs(tmp_path / "local", bucket.download(kind, tmp_path / kind))


@pytest.mark.parametrize(
    "questions", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("node", ["one", "two"], ids=["same-node", "fresh-node"])
def test_a_stopped_run_continues_to_the_same_bits(
    bucket: Bucket,
    tiny_shards: str,
    whole_run: WholeRun,
    tmp_path: Path,
    another_node: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    questions: int,
    node: str,
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 3)  # stops inside epochs, not only between them
    cfg = tiny_run(**TERMS)
    undisturbed = whole_run(cfg)
    another_node("one")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, f"{bucket.uri}/cut", StopAfter(questions))
    assert record_of(bucket, "cut")["status"] == "stopped"
    another_node(node)
    record = run(cfg, tiny_shards, f"{bucket.uri}/cut")
    assert record["status"] == record_of(bucket, "cut")["status"] == "finished"
    assert_equal_runs(undisturbed, bucket.download("cut", tmp_path / "copy"))
    assert_best_and_last_alone(bucket, "cut")


def test_a_checkpoint_inside_an_epoch_is_in_the_store_before_the_epoch_ends(
    bucket: Bucket,
    tiny_shards: str,
    tmp_path: Path,
    another_node: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 1)
    found: list[str] = []

    class StopOnceStored(LocalContext):
        """Stops after the third step, once a checkpoint of the first two has arrived."""

        asked = 0

        def stop_requested(self) -> bool:
            self.asked += 1
            deadline_s = time.monotonic() + 60
            while self.asked == 3 and not found and time.monotonic() < deadline_s:
                found.extend(name for name in checkpoints(bucket.names("cut/")) if name.startswith("last"))
                time.sleep(0.02)  # the copy needs this process and the store, too
            return self.asked == 3

    cfg = tiny_run(**TERMS, train__checkpoint_every_s=0.001)
    run(cfg, tiny_shards, tmp_path / "whole")
    another_node("one")
    with pytest.raises(StopRequested, match="stopped in epoch 1"):
        run(cfg, tiny_shards, f"{bucket.uri}/cut", StopOnceStored(torch.device("cpu")))
    assert found and set(found) <= {"last-00000001", "last-00000002"}  # the older goes when the newer is whole
    another_node("two")
    run(cfg, tiny_shards, f"{bucket.uri}/cut")
    assert_equal_runs(tmp_path / "whole", bucket.download("cut", tmp_path / "copy"))


def test_the_checkpoint_is_on_the_storage_when_the_workers_have_left(
    bucket: Bucket,
    tiny_shards: str,
    whole_run: WholeRun,
    tmp_path: Path,
    another_node: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 2)
    cfg = tiny_run(**TERMS, train__checkpoint_every_s=1000.0)
    undisturbed = whole_run(cfg)
    another_node("taken")
    with pytest.raises(Interrupted):
        run(cfg, tiny_shards, f"{bucket.uri}/told", Told(1))
    another_node("other")
    record = run(cfg, tiny_shards, f"{bucket.uri}/told")
    assert [start["images_seen"] for start in record["starts"]] == [0, 32]
    assert_equal_runs(undisturbed, bucket.download("told", tmp_path / "copy"))


@pytest.mark.slow
def test_a_node_that_comes_back_takes_over_what_another_one_did(
    bucket: Bucket, tiny_shards: str, tmp_path: Path, another_node: Callable[[str], None]
) -> None:
    cfg = tiny_run(**TERMS, train__epochs=4)
    run(cfg, tiny_shards, tmp_path / "whole")
    for node, epochs_done in (("one", 1), ("two", 2), ("one", 3)):
        another_node(node)
        with pytest.raises(StopRequested):
            run(cfg, tiny_shards, f"{bucket.uri}/run", StopAfter(0))
        assert record_of(bucket, "run")["epochs_done"] == epochs_done
    another_node("two")
    finished = run(cfg, tiny_shards, f"{bucket.uri}/run")
    another_node("one")
    assert run(cfg, tiny_shards, f"{bucket.uri}/run") == finished
    assert_equal_runs(tmp_path / "whole", bucket.download("run", tmp_path / "copy"))
    assert_best_and_last_alone(bucket, "run")


def test_what_was_removed_from_the_store_does_not_come_back_from_a_nodes_disk(
    bucket: Bucket, tiny_shards: str, another_node: Callable[[str], None]
) -> None:
    another_node("one")
    old = run(tiny_run(), tiny_shards, f"{bucket.uri}/run")
    bucket.delete(*bucket.names())  # --fresh, asked for on another node
    new = run(tiny_run(train__epochs=2), tiny_shards, f"{bucket.uri}/run")
    assert (old["epochs_done"], new["epochs_done"]) == (3, 2)
    assert [json.loads(line)["epoch"] for line in bucket.get("run/metrics.jsonl").splitlines()] == [1, 2]
    assert_best_and_last_alone(bucket, "run")


def test_a_disk_with_half_a_download_is_filled_anew(
    bucket: Bucket, tiny_shards: str, another_node: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{bucket.uri}/run"
    run(tiny_run(), tiny_shards, uri)
    keys = bucket.names("run/")
    another_node("two")
    left = [2]

    def download(where: str, path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        storage.download_whole(where, path)

    with monkeypatch.context() as patch:
        patch.setattr("ltcore.training.sync.download_whole", download)
        with pytest.raises(KeyboardInterrupt):
            RunSync(uri, scratch_dir(uri)).pull()
    assert 0 < len(storage.list_files(str(scratch_dir(uri)))) < len(keys)
    sync = RunSync(uri, scratch_dir(uri))
    sync.pull()
    sync.close()
    assert sorted(set(storage.list_files(str(scratch_dir(uri)))) - {".lock"}) == [
        key.removeprefix("run/") for key in keys
    ]
    assert bucket.names("run/") == keys


def test_files_that_a_killed_process_had_begun_on_a_nodes_disk_are_removed(bucket: Bucket) -> None:
    uri = f"{bucket.uri}/run"
    folder = scratch_dir(uri)
    (folder / "tables").mkdir(parents=True)
    left = [folder / f".{'a' * 32}.run.json", folder / "tables" / f".{'b' * 32}.recall.json"]
    for path in left:
        path.touch()
    (folder / "run.json").write_text(json.dumps({"started_at": "now", "pid": 1, "images_seen": 8}))
    bucket.put("run/run.json", (folder / "run.json").read_bytes())
    RunSync(uri, folder).pull()
    assert all(path.exists() for path in left), "somebody may still write them"
    for path in left:
        os.utime(path, (0, 0))
    RunSync(uri, folder).pull()
    assert sorted(storage.list_files(str(folder))) == [".lock", "run.json"]


def test_load_predicts_from_the_store(bucket: Bucket, tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(**TERMS), tiny_shards, f"{bucket.uri}/runs/tiny")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    local = ltcore.load(bucket.download("runs/tiny", tmp_path / "copy"))
    keys = bucket.names()
    best = next(key.rpartition("/")[0] for key in keys if "/best-" in key)
    for uri in (f"{bucket.uri}/runs/tiny", f"{bucket.uri}/runs/tiny/", f"{bucket.uri}/{best}"):
        predictor = ltcore.load(uri)
        assert predictor.classes == ("ant", "bee", "cat", "dog")
        assert torch.equal(predictor(images), local(images))
    assert bucket.names() == keys
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        ltcore.load(f"{bucket.uri}/runs/other")


@contextmanager
def every_state(bucket: Bucket, prefix: str) -> Iterator[list[dict[str, str]]]:
    """What a reader could find below the prefix: keys and contents' hashes, after every single change of the store."""
    states: list[dict[str, str]] = []
    lock = threading.Lock()

    def listen(method: str, path: str) -> None:
        if method in ("PUT", "POST", "DELETE") and path.startswith(f"/{bucket.name}"):
            with lock:
                found = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=f"{prefix}/").get("Contents", [])
                state = {e["Key"]: e["ETag"] for e in found if not e["Key"].endswith("/")}
                if not states or state != states[-1]:
                    states.append(state)

    bucket.server.requests.listeners.append(listen)
    try:
        yield states
    finally:
        bucket.server.requests.listeners.remove(listen)


def whole(state: dict[str, str]) -> list[str]:
    """Checkpoints that a reader would take, each with all its files, or the test fails."""
    found = {name: files for name, files in checkpoints(list(state)).items() if "meta.json" in files}
    for name, files in found.items():
        assert files == FILES[name.split("-")[0]], (name, files)
    return sorted(found)


@pytest.mark.slow
def test_no_moment_shows_half_a_checkpoint_or_none_where_there_was_one(
    bucket: Bucket, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 1)
    cfg = tiny_run(train__epochs=4, train__checkpoint_every_s=0.001)  # checkpoints come and go while they are copied
    with every_state(bucket, "run") as states:
        run(cfg, tiny_shards, f"{bucket.uri}/run")
    assert record_of(bucket, "run")["status"] == "finished"
    seen: set[str] = set()
    had: set[str] = set()
    for number, state in enumerate(states):
        names = whole(state)
        tags = {name.split("-")[0] for name in names}
        assert had <= tags, number
        had |= tags
        seen |= set(names)
        if state.get("run/run.json") == states[-1]["run/run.json"]:  # it says finished
            assert "last-00000020" in names
    assert {"last-00000005", "last-00000010", "last-00000015", "last-00000020"} <= seen
    assert_best_and_last_alone(bucket, "run")


@pytest.mark.timeout(60)
def test_a_pipe_among_the_files_of_a_run_is_left_there(bucket: Bucket, tmp_path: Path) -> None:
    sync = RunSync(f"{bucket.uri}/run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last-1").mkdir(parents=True)
    for folder in ("", "checkpoints/last-1"):
        (tmp_path / "run" / folder / "a.json").write_text("{}")
        os.mkfifo(tmp_path / "run" / folder / "pipe")  # to open it would wait for a writer for ever
    sync.push()
    sync.close()
    assert bucket.names("run/") == ["run/a.json", "run/checkpoints/last-1/a.json"]


@pytest.mark.slow
def test_folders_that_come_and_go_while_they_are_copied_disturb_nobody(bucket: Bucket, tmp_path: Path) -> None:
    sync = RunSync(f"{bucket.uri}/run", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    with every_state(bucket, "run") as states:
        deadline_s, step = time.monotonic() + 4, 0
        while time.monotonic() < deadline_s:
            for tag in ("best", "last"):
                step += 1
                state = {"step": torch.tensor(step)}
                ckpt.save(folder, tag, step=step, model=state, state=state if tag == "last" else None, meta={})
            if sync._last is None or sync._last.done():
                sync.push()
        sync.close()
    for found in states:
        whole(found)
    assert step > 50
    assert whole(states[-1]) == sorted(path.name for path in folder.iterdir())
    for name in whole(states[-1]):
        stored = torch.load(io.BytesIO(bucket.get(f"run/checkpoints/{name}/model.pt")), weights_only=True)
        assert stored["step"] == int(name.split("-")[1])


RUN_AND_WAIT = """
import sys, torch
from pathlib import Path
from tests.training.runs import TERMS, run, tiny_run
torch.set_num_threads(1)
from ltcore.training import trainer as fit
fit.DECIDE_EVERY = 1
run(tiny_run(**TERMS, train__epochs=6, train__checkpoint_every_s=0.001), sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_a_run_killed_with_its_node_continues_on_another_one(
    bucket: Bucket, tiny_shards: str, tmp_path: Path, another_node: Callable[[str], None]
) -> None:
    cfg = tiny_run(**TERMS, train__epochs=6)
    run(cfg, tiny_shards, tmp_path / "whole")
    another_node("one")
    command = [sys.executable, "-c", RUN_AND_WAIT, tiny_shards, f"{bucket.uri}/run"]
    with subprocess.Popen(command, cwd=ROOT, env=dict(os.environ)) as child:
        deadline_s = time.monotonic() + 120
        while len([key for key in bucket.names("run/") if "/last-" in key]) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    shutil.rmtree(storage.cache_root())
    another_node("two")
    record = run(cfg, tiny_shards, f"{bucket.uri}/run")
    assert record["status"] == "finished"
    assert_equal_runs(tmp_path / "whole", bucket.download("run", tmp_path / "copy"))
    assert_best_and_last_alone(bucket, "run")


def test_a_store_that_fails_is_not_left_unnoticed(
    bucket: Bucket, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"s3://bucket-that-nobody-made/run/.* cannot be written"):
        run(tiny_run(), tiny_shards, "s3://bucket-that-nobody-made/run")
    bucket.server.check_keys(True)
    try:
        with pytest.raises(
            DataError, match=f"{bucket.uri}/run.* cannot be listed: .*(ACCESS_DENIED|INVALID_ACCESS_KEY_ID)"
        ):
            run(tiny_run(), tiny_shards, f"{bucket.uri}/run")
    finally:
        bucket.server.check_keys(False)


def test_a_checkpoint_inside_an_epoch_does_not_wait_for_an_earlier_copy(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, may_end, copy = threading.Event(), threading.Event(), RunSync._copy

    def slowly(*arguments: Any) -> None:
        started.set()
        assert may_end.wait(60)
        copy(*arguments)

    monkeypatch.setattr(RunSync, "_copy", slowly)
    sync = RunSync(f"{bucket.uri}/run", tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.parent.mkdir()
    sync.push()
    assert started.wait(60)
    file.write_text("new\n")
    sync.push(wait=False)
    assert not may_end.is_set() and bucket.names("run/") == []
    may_end.set()
    sync.close()
    assert bucket.get("run/metrics.jsonl") == b"new\n"


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """A proxy before the store, which ltcore goes through and the tests' own client does not."""
    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(retry, "_known", retry._Outages())
    with flaky(bucket.server.endpoint) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


def test_training_goes_on_while_the_store_is_disturbed_and_the_copy_follows(
    bucket: Bucket, proxy: Flaky, tmp_path: Path
) -> None:
    sync = RunSync(f"{bucket.uri}/run", tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    file.parent.mkdir()
    with proxy.disturbed("503"):
        for number in range(3):
            file.write_text(f"{number}\n")
            sync.push()  # the second finds that the store is disturbed, and does not wait
        assert sync._last is not None and not sync._last.done() and bucket.names() == []
    sync.push()
    sync.close()
    assert bucket.get("run/metrics.jsonl") == b"2\n"


class Disturbed(LocalContext):
    """Loses the store after an epoch, for longer than anything waits."""

    def __init__(self, proxy: Flaky, monkeypatch: pytest.MonkeyPatch, *, epoch: int) -> None:
        super().__init__(torch.device("cpu"))
        self._proxy, self._monkeypatch, self._epoch = proxy, monkeypatch, epoch

    def report(self, metrics: Any, checkpoint: Any) -> None:
        super().report(metrics, checkpoint)
        if metrics["epoch"] == self._epoch:
            self._monkeypatch.setenv(retry.VARIABLE, "0.5")
            self._proxy.strike(10**9, "503")


@pytest.mark.slow
def test_a_disturbance_that_lasts_ends_the_run_with_a_sentence_and_the_same_command_continues(
    bucket: Bucket, proxy: Flaky, tiny_shards: str, whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_run(**TERMS)
    undisturbed = whole_run(cfg)

    with pytest.raises(DataError, match="it stayed so for"):
        run(cfg, tiny_shards, f"{bucket.uri}/run", Disturbed(proxy, monkeypatch, epoch=1))
    proxy.fault = ""
    monkeypatch.delenv(retry.VARIABLE)
    whole(dict.fromkeys(bucket.names("run/"), ""))
    run(cfg, tiny_shards, f"{bucket.uri}/run")
    assert_equal_runs(undisturbed, bucket.download("run", tmp_path / "copy"))


@pytest.mark.slow
def test_a_finished_run_whose_last_copy_failed_is_copied_by_the_same_command(
    bucket: Bucket, proxy: Flaky, tiny_shards: str, whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing left to train, and the storage does not know yet."""
    cfg = tiny_run()
    undisturbed = whole_run(cfg)

    with pytest.raises(DataError, match="it stayed so for"):
        run(cfg, tiny_shards, f"{bucket.uri}/run", Disturbed(proxy, monkeypatch, epoch=cfg.train.epochs))
    proxy.fault = ""
    monkeypatch.delenv(retry.VARIABLE)
    assert record_of(bucket, "run")["status"] != "finished"
    run(cfg, tiny_shards, f"{bucket.uri}/run")
    assert record_of(bucket, "run")["status"] == "finished"
    assert_equal_runs(undisturbed, bucket.download("run", tmp_path / "copy"))


def test_a_copy_that_is_refused_ends_the_run_and_is_made_up_for_at_the_end(bucket: Bucket, tmp_path: Path) -> None:
    sync = RunSync(f"{bucket.uri}/run", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    bucket.server.check_keys(True)
    sync.push()
    with pytest.raises(DataError, match=f"{bucket.uri}/run/metrics.jsonl cannot be written"):
        sync.push()
    bucket.server.check_keys(False)
    sync.close()
    assert bucket.get("run/metrics.jsonl") == b"{}\n"
