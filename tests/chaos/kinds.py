"""The kinds of faults: how each strikes a run that trains, and how it may end the command."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.harness import PATIENCE_S, Command, Place


@dataclass(frozen=True)
class Scene:
    """Where a fault strikes: a command, and one of its runs, which is in the middle of its training."""

    place: Place
    command: Command
    run: str
    draw: random.Random

    @property
    def trainer(self) -> int:
        """Pid of the process that trains the run. Raises ProcessLookupError where that has ended, and nobody goes on yet."""
        pid = int(self.place.record(self.run)["pid"])
        if pid not in self.place.processes():  # the number may be another program's by now
            raise ProcessLookupError(f"process {pid} has ended")
        return pid

    def begun(self) -> bool:
        """Tells whether it is this command that trains the run: the record may still be that of one before."""
        try:
            return psutil.Process(self.trainer).create_time() >= psutil.Process(self.command.process.pid).create_time()
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    def over(self) -> bool:
        """Tells whether nothing can strike here any more: the command or the run has ended."""
        return self.command.process.poll() is not None or self.place.record(self.run).get("status") == "finished"

    def until(self, holds: Callable[[], bool], pause_s: float = 0.02) -> bool:
        """Waits until a condition holds. Returns False where the run has ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if self.over():
                return False
            assert time.monotonic() < deadline, f"it never held:\n{self.command.said()}"
            time.sleep(pause_s)
        return True


@dataclass(frozen=True)
class Kind:
    """One kind of fault. ``strike`` raises ProcessLookupError or returns False where it came too late."""

    strike: Callable[[Scene], bool]
    code: int | None = None
    """How it ends the command; None: the command goes on, and nobody has to do anything."""


def _signal(pid: Callable[[Scene], int], sig: signal.Signals = signal.SIGKILL) -> Callable[[Scene], bool]:
    def strike(scene: Scene) -> bool:
        os.kill(pid(scene), sig)
        return True

    return strike


def _driver(scene: Scene) -> int:
    return scene.command.process.pid


def _trainer(scene: Scene) -> int:
    return scene.trainer


def _server(kind: str) -> Callable[[Scene], int]:
    return lambda scene: scene.command.server(kind)


def other_worker(scene: Scene) -> int:
    """Returns the pid of the worker that is not rank 0, whose pid the record has."""
    first = scene.trainer
    return next(pid for pid in scene.command.actors("RayTrainWorker") if pid != first)


def _controller(scene: Scene) -> int:
    return scene.command.actors("TrainController")[0]


def _train_driver(scene: Scene) -> int:
    return scene.command.actors("ray::_run")[0]


def stopped(scene: Scene) -> bool:
    """The process that trains stands still, until its silence is noticed and another one goes on."""
    pid = scene.trainer
    os.kill(pid, signal.SIGSTOP)
    if not scene.place.trains(scene.run):  # too late: of what it does next nobody expects a sign of life
        os.kill(pid, signal.SIGCONT)
        return False
    return scene.until(lambda: scene.place.record(scene.run)["pid"] != pid, pause_s=0.5)


def twice(scene: Scene) -> bool:
    """Ctrl-C, and again as soon as the command has said what the first one does."""
    os.kill(scene.command.process.pid, signal.SIGINT)
    if scene.until(lambda: "SIGINT: " in scene.command.said()):
        os.kill(scene.command.process.pid, signal.SIGINT)
    return True


def same(scene: Scene) -> bool:
    """The same command once more: it waits, then takes the result or says who works there, and changes nothing."""
    second = scene.place.start()
    code, said = second.end()
    assert code in (0, 1) and "Traceback" not in said, f"the second command ends with {code}\n{said}"
    assert code == 0 or "is in use by" in said, said
    assert scene.command.process.poll() in (None, 0), "the second command has disturbed the first"
    return True


def upload(scene: Scene) -> bool:
    """A kill in the moment in which a checkpoint is half there."""
    return _between_objects(scene) if scene.place.bucket is not None else _between_files(scene)


def _between_files(scene: Scene) -> bool:
    """While the folder of a checkpoint has its hidden name, in which the files are written one after another."""
    folder = scene.place.results / scene.run / "checkpoints"
    pid = scene.trainer

    def torn() -> bool:
        return any(name.startswith((".last-", ".best-")) for name in os.listdir(folder))  # noqa: PTH208 - it is asked often

    while scene.until(torn, pause_s=0.0):
        os.kill(pid, signal.SIGSTOP)  # so that the moment cannot pass before it is struck
        if torn():
            os.kill(pid, signal.SIGKILL)
            return True
        os.kill(pid, signal.SIGCONT)
    return False


def _between_objects(scene: Scene) -> bool:
    """Once the store has the first file of a checkpoint and not yet the record that completes it."""
    pid, struck = scene.trainer, list[int]()
    run = os.path.normpath(f"/runs/{scene.place.name}/{scene.run}")
    begun = re.compile(rf"{run}/checkpoints/[^/]+/(model|state)\.pt")

    def heard(method: str, path: str) -> None:
        whole = "partNumber" not in path if method == "PUT" else method == "POST" and "uploadId" in path
        if not struck and whole and begun.search(path):
            struck.append(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    bucket = scene.place.bucket
    assert bucket is not None
    with _listening(bucket.server.requests.listeners, heard):
        return scene.until(lambda: bool(struck))


@contextlib.contextmanager
def _listening(listeners: list[Callable[[str, str], None]], one: Callable[[str, str], None]) -> Iterator[None]:
    listeners.append(one)
    try:
        yield
    finally:
        listeners.remove(one)


def wandb_killed(scene: Scene) -> bool:
    """W&B's own process is gone."""
    os.kill(scene.command.child(scene.trainer, "wandb"), signal.SIGKILL)
    return True


def wandb_stopped(scene: Scene) -> bool:
    """W&B's own process stands still for some seconds, or for good."""
    pid = scene.command.child(scene.trainer, "wandb")
    os.kill(pid, signal.SIGSTOP)
    if scene.draw.random() < 0.5:
        time.sleep(scene.draw.uniform(1, 5))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return True


def storage(scene: Scene) -> bool:
    """The object store fails, throttles, drops connections or keeps silent for some seconds."""
    assert scene.place.proxy is not None
    with scene.place.proxy.disturbed(scene.draw.choice(("503", "429", "drops", "hangs"))):
        time.sleep(scene.draw.uniform(2, 8))
    return scene.place.proxy.struck > 0


def disk(scene: Scene) -> bool:
    """The disk of the results, or that of the cache, is full for some seconds."""
    fill(scene.draw.choice(scene.place.disks), scene.draw.uniform(2, 8))
    return True


def node(scene: Scene) -> bool:
    """The machine of the run is gone; another one comes."""
    assert scene.place.nodes is not None
    scene.place.nodes.lose()
    scene.place.nodes.add()
    return True


def spot(scene: Scene) -> bool:
    """Another machine comes, that of the run is announced to be taken back, and is some seconds later."""
    assert scene.place.nodes is not None
    scene.place.nodes.add()
    scene.place.nodes.take_back(scene.draw.randrange(8, 16))
    return True


def resize(scene: Scene) -> bool:
    """A second machine comes, or one of two is gone, and the group goes on with as many workers."""
    nodes = scene.place.nodes
    assert nodes is not None
    if len(nodes) == 1:
        nodes.add()
    else:
        nodes.lose()

    def resized() -> bool:
        return scene.place.record(scene.run)["starts"][-1]["world"] == len(nodes)

    return scene.until(resized, pause_s=0.5)


def damage(scene: Scene) -> bool:
    """The driver is killed, and a byte of what its node keeps on the disk is another one when the command comes again."""
    os.kill(scene.command.process.pid, signal.SIGKILL)
    files = [path for path in (scene.place.folder / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    with scene.draw.choice(sorted(files)).open("r+b") as file:
        place = scene.draw.randrange(os.fstat(file.fileno()).st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << scene.draw.randrange(8)]))
    return True


def torn(scene: Scene) -> bool:
    """The driver is killed, and the last row of the run's metrics has come to the disk in part."""
    pid = scene.trainer
    for process in (pid, scene.command.process.pid):
        os.kill(process, signal.SIGKILL)
    metrics = scene.place.results / scene.run / "metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size - scene.draw.randrange(1, len(metrics.read_bytes().splitlines()[-1])))
    return True


def fill(folder: Path, seconds: float) -> None:
    """Leaves no byte of a small disk free for some seconds, also none that others free meanwhile.

    Its size follows what is in use, which costs no memory, as a ballast would.
    """
    whole, end = shutil.disk_usage(folder).total, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            _resize(folder, shutil.disk_usage(folder).used)
            time.sleep(0.02)
    finally:
        _resize(folder, whole)


def _resize(folder: Path, size: int) -> None:
    """Resizes the file system; one that meanwhile holds more than ``size`` stays as it is."""
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(folder)], check=False, capture_output=True)


KINDS = {
    "run": Kind(_signal(_trainer)),
    "stopped": Kind(stopped),
    "upload": Kind(upload),
    "driver": Kind(_signal(_driver), -signal.SIGKILL),
    "SIGTERM": Kind(_signal(_driver, signal.SIGTERM), 143),
    "SIGINT": Kind(_signal(_driver, signal.SIGINT), 130),
    "twice": Kind(twice, 130),
    "same": Kind(same),
    "raylet": Kind(_signal(_server("raylet")), 1),
    "gcs": Kind(_signal(_server("gcs")), 1),
    "wandb": Kind(wandb_killed),
    "wandb stopped": Kind(wandb_stopped),
    "storage": Kind(storage),
    "disk": Kind(disk),
    "node": Kind(node),
    "spot": Kind(spot),
    "resize": Kind(resize),
    "damage": Kind(damage, -signal.SIGKILL),
    "torn": Kind(torn, -signal.SIGKILL),
    "rank 0": Kind(_signal(_trainer)),
    "rank 1": Kind(_signal(other_worker)),
    "controller": Kind(_signal(_controller)),
    "train driver": Kind(_signal(_train_driver)),
}
