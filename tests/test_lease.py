"""One process at a time works on a place, on this machine and across machines that share its storage."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore import lease, retry, storage
from ltcore.errors import DataError, RemovedError
from ltcore.lease import FOLDER, exclusive
from ltcore.storage import exists, list_files, read_bytes, remove, write_bytes_atomic
from ltcore.training import ncm
from ltcore.training.callbacks import CallbackCalls
from ltcore.training.context import LocalContext
from tests.s3 import Bucket
from tests.training.runs import run, tiny_run

pytest_plugins = ["tests.s3"]
HOLD = """
import sys, time
from ltcore.lease import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""

WRITE = """
import sys, time
from ltcore import lease
from ltcore.errors import DataError
from ltcore.storage import write_bytes_atomic
lease.RENEW_S, lease.VOID_S = 0.3, 2.0
try:
    with lease.exclusive(sys.argv[1]) as held:
        for number in range(10**6):
            held.check()
            write_bytes_atomic(f"{sys.argv[1]}/run.json", f"old {number}".encode())
            print("wrote", number, flush=True)
            time.sleep(0.05)
except DataError as error:
    print(error, flush=True)
"""
"""A process that writes a record for as long as the place is its own."""


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "run")
    bucket: Bucket = request.getfixturevalue("bucket")
    return f"{bucket.uri}/run"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PREDECESSOR_S", 0.4)
    monkeypatch.setattr(lease, "VOID_S", 1.5)
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    monkeypatch.setattr(lease.random, "uniform", lambda low, high: 0.1)


def elsewhere(monkeypatch: pytest.MonkeyPatch, machine: str = "another boot") -> None:
    """From now on this process takes itself for one of another machine."""
    monkeypatch.setattr(lease, "_machine", lambda: machine)
    monkeypatch.setattr(lease.platform, "node", lambda: "node-7")


def claim_of_another_machine(place: str, monkeypatch: pytest.MonkeyPatch) -> lease.Lease:
    with monkeypatch.context() as there:
        elsewhere(there)
        claim = lease.Lease(f"{place}/{FOLDER}/gone.json", lease._me())
        claim._write()
    return claim


def test_the_second_of_one_machine_says_whom_it_waits_for_and_then_that_the_place_is_in_use(place: str) -> None:
    said: list[str] = []
    with (
        exclusive(place),
        pytest.raises(
            DataError, match=rf"run is in use by process {os.getpid()} of this machine, since .*another --name"
        ),
        exclusive(place, said.append),
    ):
        raise AssertionError("both hold it")
    assert [line.partition(", since")[0] for line in said] == [
        f"{place} is in use by process {os.getpid()} of this machine"
    ]
    with exclusive(place):
        pass


def test_a_patient_one_waits_for_as_long_as_the_other_works(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said, order = list[str](), list[str]()
    held = threading.Event()

    def work() -> None:
        with exclusive(place):
            held.set()
            time.sleep(2 * lease.PREDECESSOR_S)
            order.append("first")

    signs = list[None]()
    monkeypatch.setitem(retry.listeners, "test", lambda: signs.append(None))
    thread = threading.Thread(target=work)
    thread.start()
    held.wait()
    with exclusive(place, said.append, patient=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and len(said) == 1
    assert signs, "else its waiting would be taken for a hang"


def test_a_second_machine_is_refused_whatever_its_cache_folder_is(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with exclusive(place):
        elsewhere(monkeypatch)
        monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "another"))
        with pytest.raises(DataError, match=r"in use by process .* of"), exclusive(place):
            raise AssertionError("both hold it")


def test_the_claim_of_a_killed_process_is_void_at_once(tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    child = subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with pytest.raises(DataError, match=f"in use by process {child.pid} of this machine"), exclusive(place):
        raise AssertionError("both hold it")
    child.send_signal(signal.SIGKILL)  # and nobody waits for it yet, as Ray may not
    began = time.monotonic()
    with exclusive(place):
        assert time.monotonic() - began < 0.4
    child.wait()
    child.stdout.close()


def test_the_claim_of_a_machine_that_is_gone_is_void_when_nobody_renews_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_of_another_machine(place, monkeypatch)
    began = time.monotonic()
    with exclusive(place):
        assert time.monotonic() - began > 1.4


def test_a_claim_that_could_not_be_removed_holds_nobody_of_its_own_process(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unreachable:
        unreachable.setattr(lease, "_remove", lambda file: None)
        with exclusive(place):
            pass
    assert len(list_files(f"{place}/{FOLDER}")) == 1
    began = time.monotonic()
    with exclusive(place):
        assert time.monotonic() - began < 1.0 and len(list_files(f"{place}/{FOLDER}")) == 1


def test_claims_of_ended_processes_on_runs_of_a_sweep_go_with_it(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [f"{place}/trials/0000{n}/{FOLDER}/a.json" for n in range(3)]
    ended = lease.asdict(lease._me()) | {"born": "12"}
    with exclusive(place), exclusive(f"{place}/retrain/winner-seed1"):
        before = list_files(place)
        write_bytes_atomic(claims[0], json.dumps(ended).encode())
        write_bytes_atomic(claims[1], json.dumps(ended | {"machine": "another boot"}).encode())
        write_bytes_atomic(claims[2].replace("a.json", "notes.txt"), b"")
        lease.remove_ended(place)
        assert {*list_files(place)} - {*before} == {f"trials/00001/{FOLDER}/a.json", f"trials/00002/{FOLDER}/notes.txt"}
        assert {*before} <= {*list_files(place)}, "those that are held"


def test_nor_others_for_longer_than_it_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives on with other work, as a notebook does."""
    monkeypatch.setattr(lease, "PREDECESSOR_S", 1.5 * lease.VOID_S)
    place = str(tmp_path / "run")
    code = "from ltcore import lease; lease._remove = lambda file: None\n" + HOLD.replace("    time", "time")
    with subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with exclusive(place):
            assert child.poll() is None
        child.kill()


def test_others_wait_for_longer_than_a_claim_is_valid() -> None:
    """Asked in a process of its own, where nothing is shortened."""
    code = "from ltcore import lease; assert lease.PREDECESSOR_S > lease.VOID_S + lease.RENEW_S / 2"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_renewal_that_was_long_on_its_way_ends_nobody_who_took_over(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine that stood still in the middle of it, and of this process, which has given its claim up since."""
    gone = claim_of_another_machine(place, monkeypatch)
    mine = lease.Lease(f"{place}/{FOLDER}/mine.json", lease._me())
    with exclusive(place) as held:
        for late in (gone, mine):
            late._write()
            held._look()
            held.check()
            gone._look()
            with pytest.raises(DataError, match="was taken over"):
                gone.check()
        assert len(list_files(f"{place}/{FOLDER}")) == 1


def test_a_claim_that_was_given_up_is_not_renewed_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage fails in the middle of a renewal, and comes back after the run has ended."""
    place, disturbed = str(tmp_path / "run"), threading.Event()
    write = storage._write_local

    def fails(path: Path, data: bytes) -> None:
        if disturbed.is_set() and FOLDER in str(path):
            raise OSError(errno.ESTALE, "Stale file handle")
        write(path, data)

    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(storage, "_write_local", fails)
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.3)
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    with exclusive(place):
        disturbed.set()
        time.sleep(0.3)
    disturbed.clear()
    time.sleep(1.0)
    assert list_files(f"{place}/{FOLDER}") == []


def test_a_first_claim_waits_for_its_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, began = storage._write_local, time.monotonic()

    def fails(path: Path, data: bytes) -> None:
        if time.monotonic() - began < 1.2 * lease.VOID_S:
            raise OSError(errno.ESTALE, "Stale file handle")
        write(path, data)

    monkeypatch.delenv(retry.VARIABLE, raising=False)
    monkeypatch.setattr(storage, "_write_local", fails)
    with exclusive(str(tmp_path / "run")) as held:
        held.check()


def test_damage_in_the_folder_holds_nobody_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "run" / FOLDER
    folder.mkdir(parents=True)
    for name, text in (("a.json", ""), ("b.json", "[]"), ("c.json", '{"pid": 1}'), (".d.json.123", "{}")):
        (folder / name).write_text(text)
    with exclusive(str(tmp_path / "run")):
        assert {file.name for file in folder.glob("?.json")} == set()


def test_who_lost_the_place_while_it_stood_still_stops(place: str) -> None:
    with exclusive(place) as held:
        held.check()
        lease._remove(held._file)  # what another process does with a claim that is void, before it writes its own
        write_bytes_atomic(f"{place}/{FOLDER}/another.json", b"{}")
        held._write()  # and this one was in the middle of a renewal
        held._look()
        with pytest.raises(DataError, match=r"run was taken over by another process"):
            held.check()


def clear(place: str) -> None:
    """Removes a folder with all that is in it, as a person does."""
    if "://" in place:
        remove(place)
    else:
        shutil.rmtree(place)


def test_a_place_that_is_removed_is_lost_and_no_renewal_brings_it_back(place: str) -> None:
    with exclusive(place) as held:
        write_bytes_atomic(f"{place}/run.json", b"mine")
        held.check()
        clear(place)
        with pytest.raises(RemovedError, match=r"run, or \.lease in it, was removed .* the same command begins anew"):
            held.check()
        time.sleep(3 * lease.RENEW_S)
        with pytest.raises(RemovedError):
            lease.check_held(place)
    assert not exists(place)


def test_a_void_claim_that_is_missing_was_another_ones_to_remove_unless_the_place_is_missing_too(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one took over and has ended since."""
    monkeypatch.setattr(lease, "RENEW_S", 60.0)
    with exclusive(place) as held:
        write_bytes_atomic(f"{place}/run.json", b"of the other one")
        lease._remove(held._file)
        held._seen -= 2 * lease.VOID_S
        with pytest.raises(DataError, match="was taken over"):
            held.check()
        held._taken = False
        clear(place)
        with pytest.raises(RemovedError):
            held.check()


def test_a_process_that_had_the_same_pid_before_is_another_one(tmp_path: Path) -> None:
    folder = tmp_path / "run" / FOLDER
    folder.mkdir(parents=True)
    mine = lease.asdict(lease._me()) | {"born": "12"}
    (folder / "before.json").write_text(json.dumps(mine | {"renewals": 3}))
    began = time.monotonic()
    with exclusive(str(tmp_path / "run")):
        assert time.monotonic() - began < 0.4


def test_of_many_at_once_one_at_a_time_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PREDECESSOR_S", 30.0)
    turn = random.Random(0)
    monkeypatch.setattr(lease.random, "uniform", lambda low, high: turn.betavariate(1, 9) / 5)
    holding, most, turns = [0], [0], [0]

    def work() -> None:
        with exclusive(str(tmp_path / "run")):
            holding[0] += 1
            most[0] = max(most[0], holding[0])
            time.sleep(0.01)
            holding[0] -= 1
            turns[0] += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], turns[0]) == (1, 6)


def test_an_owner_that_was_stopped_writes_nothing_after_it_lost_the_place(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that share nothing but the storage; the first stands still for longer than its claim is good."""
    monkeypatch.setattr(lease, "PREDECESSOR_S", 30.0)
    monkeypatch.setattr(lease, "VOID_S", 2.0)
    environment = {**os.environ, "LTCORE_CACHE": str(tmp_path / "another")}
    child = subprocess.Popen([sys.executable, "-c", WRITE, place], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None and child.stdout.readline() == "wrote 0\n"
    child.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with exclusive(place):
        assert time.monotonic() - began > 1.5
        write_bytes_atomic(f"{place}/run.json", b"new")
        child.send_signal(signal.SIGCONT)
        said = child.stdout.read()
        assert read_bytes(f"{place}/run.json") == b"new"
    assert "run was taken over by another process while this one was suspended" in said.splitlines()[-1]
    assert child.wait() == 0
    child.stdout.close()


def test_files_that_a_killed_process_had_begun_are_removed(tmp_path: Path) -> None:
    killed = "import os, signal, sys\nfrom ltcore.storage import written\nwith written(sys.argv[1]) as aside:\n"
    killed += "    aside.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    for name in ("run.json", "tables/recall.json"):
        subprocess.run([sys.executable, "-c", killed, str(tmp_path / name)], check=False)
    left = list(tmp_path.rglob(".*.json"))
    assert len(left) == 2
    (tmp_path / ".mine.json").touch()
    with exclusive(str(tmp_path)):
        assert all(path.exists() for path in left), "somebody may still write them"
    for path in [*left, tmp_path / ".mine.json"]:
        os.utime(path, (0, 0))
    with exclusive(str(tmp_path)):
        assert [path.name for path in tmp_path.rglob(".*.json")] == [".mine.json"]


def test_who_holds_a_place_asks_by_its_name(tmp_path: Path) -> None:
    lease.check_held(str(tmp_path))  # nobody does
    with exclusive(str(tmp_path)) as held:
        lease.check_held(str(tmp_path))
        held._taken = True
        with pytest.raises(DataError, match="taken over"):
            lease.check_held(str(tmp_path))


class Robbed(LocalContext):
    """Loses its place to another process after some steps, as one that was stopped for a minute; the other one finishes."""

    def __init__(self, place: Path, steps: int) -> None:
        super().__init__(torch.device("cpu"))
        self._place, self._left = place, steps

    def beat(self, epoch: int, images_seen: int, total_images: int) -> None:
        self._left -= 1
        if self._left == 0:
            (self._place / "run.json").write_text("the record of the other one")
            for tag in ("last-00000099", "best-00000099"):
                (self._place / "checkpoints" / tag).mkdir(parents=True)
            lease._held[str(self._place)]._taken = True


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_lost_its_place_leaves_the_record_and_checkpoints_of_the_other(
    steps: int, tiny_shards: str, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    with pytest.raises(DataError, match="was taken over by another process"):
        run(tiny_run(), tiny_shards, place, Robbed(place, steps), test=True)
    assert (place / "run.json").read_text() == "the record of the other one"
    assert {"last-00000099", "best-00000099"} <= {folder.name for folder in (place / "checkpoints").iterdir()}


def removes_at(epoch: int, what: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes files while the run is at its callbacks, before the row of the epoch is written."""

    def epoch_end(calls: CallbackCalls, now: int, metrics: Mapping[str, Any]) -> tuple[dict[str, float], str]:
        if now == epoch:
            what()
        return {}, ""

    monkeypatch.setattr(CallbackCalls, "epoch_end", epoch_end)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_whose_directory_is_removed_says_so_and_leaves_it_removed(
    epoch: int, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    cfg = tiny_run(tracking__tensorboard=True)
    with monkeypatch.context() as patch:
        removes_at(epoch, lambda: shutil.rmtree(place), patch)
        with pytest.raises(RemovedError, match=r"run/metrics\.jsonl was removed .* its rows until now are lost"):
            run(cfg, tiny_shards, place, test=True)
    assert not place.exists()
    assert run(cfg, tiny_shards, place)["status"] == "finished"


@pytest.mark.parametrize("moment", ["report", "beat"])
def test_it_notices_between_two_rows(
    moment: str, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 1)
    place = tmp_path / "run"
    ctx = LocalContext(torch.device("cpu"))
    setattr(ctx, moment, lambda *_: shutil.rmtree(place, ignore_errors=True))
    with pytest.raises(RemovedError, match=r"run, or \.lease in it, was removed"):
        run(tiny_run(), tiny_shards, place, ctx)
    assert not place.exists()


def test_a_run_whose_files_are_removed_but_not_its_claim_writes_none_anew(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``rm -rf run/*`` does."""
    place = tmp_path / "run"

    def empty() -> None:
        for path in place.glob("[!.]*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    removes_at(2, empty, monkeypatch)
    with pytest.raises(RemovedError, match=r"run/metrics\.jsonl was removed"):
        run(tiny_run(), tiny_shards, place)
    assert [path.name for path in place.iterdir()] == [FOLDER]


def test_a_run_that_is_removed_while_it_is_tested_leaves_nothing(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = ncm.tests

    def meanwhile(*given: Any) -> Any:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return tests(*given)

    monkeypatch.setattr(ncm, "tests", meanwhile)
    monkeypatch.setattr("ltcore.training.run._SyncedContext.beat", lambda *_: None)
    with pytest.raises(RemovedError):
        run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run", test=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_removed_from_its_store_says_so_and_sends_nothing_more(
    bucket: Bucket, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a copy."""
    place, listeners = f"{bucket.uri}/run", bucket.server.requests.listeners
    monkeypatch.setattr(lease, "RENEW_S", 60.0)

    def heard(method: str, path: str) -> None:
        whole = "partNumber" not in path if method == "PUT" else method == "POST" and "uploadId" in path
        if whole and "/metrics.jsonl" in path:
            listeners.remove(heard)
            bucket.delete(*bucket.names("run/"))

    listeners.append(heard)
    with pytest.raises(RemovedError, match=r"/run, or \.lease in it, was removed"):
        run(tiny_run(), tiny_shards, place)
    assert heard not in listeners and bucket.names("run/") == []
    assert run(tiny_run(), tiny_shards, place)["status"] == "finished"
