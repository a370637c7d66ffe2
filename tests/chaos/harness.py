"""Commands in processes of their own, faults that strike them at a stated point, and what they must come to.

``Place`` is where one command works: its storage, cache and folder for temporary files are its own, so that whatever stays
behind is found. ``Command`` is one execution of it. What a place lies on, a disk or an object store, says ``grounds``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ltcore import storage
from tests.paths import ROOT

if TYPE_CHECKING:  # the servers of an object store take seconds to import
    from tests.chaos.grounds import Nodes
    from tests.flaky import Flaky
    from tests.s3 import Bucket

MARK = "LTCORE_TESTED_BY"
"""Variable that every process of a place inherits, so that it is found wherever it went."""
PATIENCE_S = 400.0
"""How long a condition may take to hold, and a command to end: the machine has other work."""
ORPHANS_S = 60.0
"""How long processes may take to notice that what they worked for is gone."""
TIMES = ("_s", "_fraction", "_bytes", "_at")
MONITORS = "wandb_symon-"
"""Start of the names of sockets that W&B's monitors may leave where they end by themselves."""
SERVERS = {"raylet": "raylet/raylet", "gcs": "gcs/gcs_server", "wandb": "wandb-core"}
"""Process -> what its command line contains."""


OWN = ("RAY_", "WANDB_", "LTCORE_STORAGE_PATIENCE_S")
"""How the names of variables begin that a command must not inherit; the tests' own patience is none."""
STAGES = ("start Ray", "data", "warm-up", "search", "retrain", "retrain for ALT", "report")


@dataclass
class Place:
    """Where one sweep or run is computed, by as many executions of its command as it takes."""

    script: str
    words: Sequence[str]
    name: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    through: Sequence[str] = ()
    """Command that starts the command, as in another namespace."""
    disks: tuple[Path, ...] = ()
    """Small file systems of its own, which a fault may fill."""
    bucket: Bucket | None = None
    """Where the results go in an object store, read here past the proxy."""
    proxy: Flaky | None = None
    """What its commands reach the object store through."""
    nodes: Nodes | None = None
    """The Ray that its commands join; without it they start their own."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="lt", dir="/tmp"))  # short: Ray's sockets lie in it

    @property
    def results(self) -> Path:
        """Returns the directory of the sweep or run on the disk."""
        return self.folder / "runs" / self.name

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file of the results; None where there is none."""
        if self.bucket is None:
            with contextlib.suppress(FileNotFoundError):
                return (self.results / name).read_bytes()
            return None
        key = f"runs/{self.name}/{name}"
        return self.bucket.get(key) if key in self.bucket.names(key) else None

    def collect(self) -> Path:
        """Returns a directory with all results: their own, or a copy of what is in the object store."""
        if self.bucket is None:
            return self.results
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        return self.bucket.download(f"runs/{self.name}", copy / self.name)

    def start(self) -> Command:
        """Gives the command."""
        return Command(self)

    def finish(self) -> str:
        """Gives the command, which must succeed. Returns what it printed."""
        command = self.start()
        code, said = command.end()
        assert code == 0, said
        return said

    def record(self, where: str = "", file: str = "run.json") -> dict[str, Any]:
        """Returns a record below the results; {} where there is none."""
        found: dict[str, Any] = json.loads(self.read(os.path.normpath(f"{where}/{file}").lstrip("/")) or b"{}")
        return found

    def rows(self, where: str) -> int:
        """Returns the number of epochs that a run has logged."""
        return (self.read(os.path.normpath(f"{where}/metrics.jsonl")) or b"").count(b"\n")

    def saved_step(self, where: str) -> int:
        """Returns the step of the newest complete checkpoint from which a run can go on; 0 before the first."""
        folder = f"{where}/checkpoints"
        if self.bucket is None:
            names = [str(path) for path in (self.results / folder).glob("last-*/meta.json")]
        else:
            names = self.bucket.names(f"runs/{self.name}/{folder}/last-")
        found = re.findall(r"/last-(\d+)/meta\.json$", "\n".join(names), re.MULTILINE)
        return max(map(int, found), default=0)

    def trains(self, where: str, epochs: int = 1) -> bool:
        """Tells whether a run is in the middle of its training, after at least ``epochs`` logged epochs."""
        record = self.record(where)
        return record.get("status") == "running" and epochs <= self.rows(where) < record["epochs_planned"]

    def processes(self, containing: str = "") -> dict[int, str]:
        """Returns pid -> command line of every living process of this place."""
        found = {}
        wanted = f"{MARK}={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted not in (folder / "environ").read_bytes():
                    continue
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line and containing in line:
                    found[int(folder.name)] = line
        return found

    def assert_clean(self) -> None:
        """Nothing stays behind, wherever it would lie: no process, actor, lease, temporary file or half of something."""
        deadline = time.monotonic() + ORPHANS_S
        while (left := self.orphans()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, f"processes that stay behind: {left}"
        if self.nodes is not None:
            self.assert_free()
        results = self.collect()
        halves = left_in(results, [results, *(file.parent for file in results.rglob("run.json"))])
        for cache in self.caches:
            halves += left_in(cache, [*(cache / name for name in TIDIED), *cache.glob("runs/*")])
        assert not halves, f"leases and halves that stay behind: {halves[:20]}"
        temporary = [path for path in self.temporary.glob("*") if not path.name.startswith(("ray", MONITORS))]
        temporary += [path for path in self.temporary.glob("ray/*") if path.name not in RAYS_OWN]
        assert not temporary, f"temporary files that stay behind: {temporary[:20]}"

    @property
    def caches(self) -> list[Path]:
        """Returns the caches of its commands and of the nodes that are there; nobody can tidy up on one that is gone."""
        own = self.environment.get("LTCORE_CACHE", str(self.folder / "cache"))
        return [Path(own), *(self.nodes.caches if self.nodes is not None else ())]

    def orphans(self) -> dict[int, str]:
        """Returns the processes of this place but for Ray's own, where it outlives the commands."""
        kept = RAYS_ACTORS if self.nodes is not None else ()
        return {pid: line for pid, line in self.processes().items() if not line.startswith(kept)}

    def assert_free(self) -> None:
        """No actor and no placement group stays in a Ray that outlives its commands."""
        assert self.nodes is not None
        deadline = time.monotonic() + ORPHANS_S
        while (left := self.nodes.left()) and time.monotonic() < deadline:
            time.sleep(1)
        assert not left, f"in Ray stay behind: {left}"

    def close(self) -> None:
        """Ends whatever a failed test left running."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.temporary, ignore_errors=True)


HALVES = re.compile(
    r"\.(last|best)-\d+\..+|.+\.partial(-.+)?|\..+\.building-.+|.+\.gone|\.ltcore-doctor-.+|ltcore\.lock"
)
"""Names of what is written aside before it moves to its place, and of the lock in a folder that goes with a process."""


TIDIED = ("building", "datasets", "weights")
"""Folders of the cache from which a command removes what killed processes had begun there."""


def left_in(folder: Path, tidied: Iterable[Path]) -> list[Path]:
    """Returns leases, temporary files and halves of something below a folder.

    A file that a killed process had begun may be written still, as far as others know, and stays for an hour. That is over
    here, and the next command, which looks into the ``tidied`` folders, has come.
    """
    begun = [path for path in folder.rglob(".*") if storage._UNFINISHED.fullmatch(path.name)]
    for path in begun:
        os.utime(path, (0, 0))
    for each in tidied:
        storage.remove_unfinished(each)
    left = [path for path in begun if path.exists()]
    return left + [path for path in folder.rglob("*") if HALVES.fullmatch(path.name) or path.parent.name == ".lease"]


RAYS_ACTORS = ("ray::_AutoscalingCoordinatorActor", "ray::TrainStateActor", "ray::_StatsActor")
"""Actors that Ray starts from the first command that needs them, for all."""
RAYS_OWN = ("session_latest", "ray_current_cluster", "node_ip_address.json", "ports_by_node.json")


@contextlib.contextmanager
def place(script: str, words: Sequence[str], name: str, folder: Path, **fields: Any) -> Iterator[Place]:
    """A place whose processes end with the block."""
    made = Place(script, words, name, folder, **fields)
    try:
        yield made
    finally:
        made.close()


class Command:
    """One execution of a place's command, as the leader of a process group, as a shell would start it."""

    def __init__(self, where: Place) -> None:
        self.place = where
        where.folder.mkdir(parents=True, exist_ok=True)
        self._log = (where.folder / f"said-{time.monotonic_ns()}.txt").open("w+")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(OWN)}
        environment |= {
            "LTCORE_CACHE": str(where.folder / "cache"),
            "TMPDIR": str(where.temporary),
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
            MARK: where.mark,
            **where.environment,
        }
        self.process = subprocess.Popen(
            [*where.through, sys.executable, str(ROOT / "pipelines" / where.script), *where.words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self) -> str:
        """Returns what it has printed so far."""
        return Path(self._log.name).read_text(errors="replace")

    def until(self, holds: Callable[[], Any]) -> None:
        """Waits until a condition holds, during which the command must not end."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before:\n{self.said()}"
            assert time.monotonic() < deadline, f"it never held:\n{self.said()}"
            time.sleep(0.02)

    def strike(self, holds: Callable[[], Any], pid: Callable[[], int], sig: signal.Signals = signal.SIGKILL) -> int:
        """Sends a process a signal once the condition holds; it must hold still when it has been struck.

        A process that is stopped first cannot pass the point between the look and the signal.
        """
        while True:
            self.until(holds)
            target = pid()
            os.kill(target, signal.SIGSTOP)
            if holds():
                break
            os.kill(target, signal.SIGCONT)  # too late for this time
        if sig != signal.SIGKILL:
            os.kill(target, signal.SIGCONT)
        os.kill(target, sig)
        return target

    def interrupt(self, sig: signal.Signals = signal.SIGINT) -> None:
        """Sends the signal to the whole group, as a terminal does."""
        os.killpg(self.process.pid, sig)

    def server(self, kind: str) -> int:
        """Returns the pid of a server of this command's Ray, or of W&B's process."""
        found = self.place.processes(SERVERS[kind])
        if not found:  # it has not started yet, where the record of the run is still that of a command before
            raise ProcessLookupError(f"no {kind} among {self.place.processes()}")
        return min(found)

    def actors(self, name: str) -> list[int]:
        """Returns the pids of this command's Ray actors or tasks whose title contains ``name``."""
        found = [pid for pid, line in self.place.processes(name).items() if line.startswith("ray::")]
        if not found:
            raise ProcessLookupError(f"no {name} among {self.place.processes()}")
        return sorted(found)

    def child(self, parent: int, kind: str) -> int:
        """Returns the pid of W&B's process that belongs to a process that trains."""
        for pid in self.place.processes(SERVERS[kind]):
            if psutil.Process(pid).ppid() == parent:
                return pid
        raise ProcessLookupError(f"process {parent} has no {kind}")

    def stage(self) -> str:
        """Returns the stage of a sweep that it named last; '' before the first."""
        named = re.findall(r"^ *[\d.]+ s  (.+)$", self.said(), re.MULTILINE)
        return next((name for name in reversed(named) if name in STAGES), "")

    def end(self, within_s: float = PATIENCE_S) -> tuple[int, str]:
        """Waits for the end. Returns the exit code and what was printed."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s:g} s:\n{self.said()}") from None
        return code, self.said()


def outcome(where: Place) -> dict[str, Any]:
    """Returns everything that a sweep or run came to and that no fault may change: values, rows, weights, decisions."""
    found: dict[str, Any] = {}
    results = where.collect()
    for file in sorted(results.rglob("run.json")):
        folder = file.parent
        record = json.loads(file.read_text())
        kept = ("status", "epochs_done", "images_seen", "last", "best", "test")
        found[str(folder.relative_to(results))] = {
            **{key: timeless(record.get(key)) for key in kept},
            "rows": [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
            "weights": {
                path.name: _digest(path / "model.pt") for path in sorted((folder / "checkpoints").glob("[lb]*"))
            },
        }
    sweep = where.record(file="sweep.json")
    return found | {key: timeless(sweep.get(key)) for key in ("trials", "rungs", "winner", "comparison", "balanced")}


def timeless(value: Any) -> Any:
    """Returns a value without what only the clock and the machine decide."""
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if not key.endswith(TIMES)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(torch.load(file, weights_only=True).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Returns where two outcomes differ, by run and field."""
    found = []
    for key in sorted(first.keys() | second.keys()):
        a, b = first.get(key), second.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            parts = [part for part in a.keys() | b.keys() if a.get(part) != b.get(part)]
            found += [f"{key}.{part}: {a.get(part)} / {b.get(part)}" for part in sorted(parts)]
        elif a != b:
            found.append(f"{key}: {a} / {b}")
    return found
