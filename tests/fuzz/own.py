"""Targets: everything that reads what runs, sweeps, caches and logins left on a disk."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from ltcore.cli import console
from ltcore.config.records import SweepRecord
from ltcore.data.config import DataConfig
from ltcore.data.datasets.shard_task import ShardTask
from ltcore.data.datasets.workspace import Run, here
from ltcore.data.glt.choices import Discovery, GltChoices
from ltcore.data.glt.pool import open_pool
from ltcore.data.glt.workspace import build
from ltcore.data.loading.canvas_cache import entry_path, open_canvases
from ltcore.data.loading.original_cache import images_path, open_images
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.lease import FOLDER, Lease, _living, _me
from ltcore.reporting.card import model_card
from ltcore.reporting.report import make_table, write_report, write_runs_report
from ltcore.runtime.autoscaler import read_limits
from ltcore.tracking.wandb_account import find_key
from ltcore.training.context import StopRequested
from ltcore.training.discover import discovery_of
from ltcore.training.predict import load
from ltcore.training.protocol_runs import checked, open_stored
from ltcore.training.stage2.source import resolved
from tests.conftest import make_tiny
from tests.data.glt_bar import no_bar
from tests.data.nested import file_hashes, flat_folder
from tests.fuzz import mutate
from tests.fuzz.harness import SilentError, Target
from tests.paths import ROOT
from tests.records import sweep_record
from tests.reporting import comparison, fake_sweep, own_run
from tests.training.runs import StopAfter, run, stage2_run, tiny_run

T = TypeVar("T")
R = TypeVar("R")
Case = tuple[str, bytes]
"""A file below the folder of a target, and what is in it instead."""


def _changed(rng: random.Random, name: str, data: bytes) -> bytes:
    """Changes a file as what it is: a tree of values, lines, or bytes."""
    if name.endswith((".json", ".yaml")) and rng.random() < 0.6:
        return json.dumps(mutate.tree(rng, json.loads(data)), default=str).encode()
    if name.endswith(".jsonl") and data.strip() and rng.random() < 0.6:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutate.tree(rng, json.loads(lines[at]))).encode()
        return b"\n".join(lines) + rng.choice((b"", b"\n"))
    if name.endswith((".json", ".jsonl", ".yaml", ".netrc")) and rng.random() < 0.5:
        return mutate.encoded(rng, mutate.text_lines(rng, data.decode()))
    return mutate.any_bytes(rng, data)


class Folder:
    """A folder of which one file at a time is changed, and put back behind its reader."""

    def __init__(self, folder: Path) -> None:
        logging.disable()
        warnings.simplefilter("ignore")
        self.folder = folder
        self.make()
        self.files = {name: (folder / name).read_bytes() for name in self.names()}
        self._order = sorted(self.files)

    def make(self) -> None:
        raise NotImplementedError

    def names(self) -> list[str]:
        kept = (path for path in self.folder.rglob("*") if path.suffix in (".json", ".jsonl") and path.is_file())
        return [str(path.relative_to(self.folder)) for path in kept]

    def read(self) -> None:
        raise NotImplementedError

    def originals(self) -> Sequence[Case]:
        name = self._order[0]
        return [(name, self.files[name])]

    def mutated(self, rng: random.Random) -> Case:
        name = rng.choice(self._order)
        return name, _changed(rng, name, self.files[name])

    def run(self, case: Case) -> None:
        name, data = case
        (self.folder / name).write_bytes(data)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.read()
        finally:
            self.restore()

    def restore(self) -> None:
        for name, data in self.files.items():
            file = self.folder / name
            if not file.exists() or file.read_bytes() != data:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)


class SweepPage(Folder):
    """A finished sweep in its report and table."""

    def make(self) -> None:
        fake_sweep.make_sweep(self.folder, num_trials=3, seeds=2, ablation=True)

    def read(self) -> None:
        write_report(self.folder)
        left = [path.name for path in self.folder.iterdir() if path.name.startswith(".")]
        if left:
            raise SilentError(f"{left} stays")


class UnfinishedSweepPage(SweepPage):
    """A sweep whose search goes on."""

    def make(self) -> None:
        fake_sweep.make_sweep(self.folder, num_trials=3, seeds=1)
        fake_sweep.write_json(self.folder / "sweep.json", fake_sweep.begun(3))


class VariantsPage(SweepPage):
    """A comparison of methods."""

    def make(self) -> None:
        comparison.comparison(2).write(self.folder)

    def read(self) -> None:
        super().read()
        make_table([self.folder])


class StoredSweep(Folder):
    """A sweep as its command shows it again."""

    def make(self) -> None:
        fake_sweep.make_sweep(self.folder, num_trials=3, seeds=2, ablation=True)

    def names(self) -> list[str]:
        return ["sweep.json"]

    def read(self) -> None:
        record = SweepRecord.read(self.folder)
        if record is not None and record.status == "finished":
            console.show_result(record, str(self.folder), age=True)


class StoredComparison(StoredSweep):
    """A comparison as its command shows it again."""

    def make(self) -> None:
        ended = sweep_record(status="finished").finished_at
        comparison.comparison(2, status="finished", finished_at=ended).write(self.folder)


class RunPage(Folder):
    """Runs in report, table and card."""

    def make(self) -> None:
        own_run.write(self.folder / "run")

    def names(self) -> list[str]:
        names = [str(path.relative_to(self.folder)) for path in (self.folder / "run").rglob("*") if path.is_file()]
        return [*(name for name in names if not name.endswith(".html"))]

    def read(self) -> None:
        write_runs_report([self.folder / "run"])
        model_card(str(self.folder / "run"))


class Table(Folder):
    """A run in the table of results and on the terminal."""

    def make(self) -> None:
        from tests.reporting import finished_run

        finished_run.write(self.folder / "run", 0.4, 0.5)

    def read(self) -> None:
        make_table([self.folder / "run"])
        stored = open_stored(str(self.folder / "run"))
        console.show_run(stored.record, stored.uri)
        checked([stored])


class Trained(Folder):
    """A run of one epoch on the tiny data, with its checkpoints."""

    def make(self) -> None:
        self.cfg = tiny_run(train__epochs=1, data__loader="threads")
        once = self.folder.parent / "trained"
        self.uri = str(once / "shards")
        if not once.exists():
            make_tiny(self.uri)
            run(self.cfg, self.uri, once / "run")
        self.place = self.folder / "run"
        shutil.copytree(once / "run", self.place)

    def names(self) -> list[str]:
        files = [path for path in self.place.rglob("*") if path.is_file()]
        return [str(path.relative_to(self.folder)) for path in files if path.name in self.wanted]

    wanted: tuple[str, ...] = ("meta.json",)


class CheckpointMeta(Trained):
    """The records of checkpoints."""

    def names(self) -> list[str]:
        return [name for name in super().names() if "best" in name]

    def read(self) -> None:
        if not np.isfinite(load(self.place).predict_proba(_photo())).all():
            raise SilentError("a prediction is not finite")


class CheckpointWeights(Trained):
    """The weights of checkpoints: damaged ones are refused, not used."""

    wanted = ("model.pt",)

    def names(self) -> list[str]:
        return [name for name in super().names() if "best" in name]

    def make(self) -> None:
        super().make()
        self.expected = load(self.place).predict_proba(_photo())

    def read(self) -> None:
        if not np.array_equal(load(self.place).predict_proba(_photo()), self.expected):
            raise SilentError("other weights were loaded")


def _photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))


class Resume(Trained):
    """A run that continues for its last epoch from a damaged folder, and comes to the same weights or says why not."""

    wanted = ("run.json", "metrics.jsonl", "meta.json", "state.pt", "model.pt")

    def make(self) -> None:
        super().make()
        self.cfg = self.cfg.replace({"train.epochs": 2})
        shutil.rmtree(self.place)
        run(self.cfg, self.uri, self.folder / "whole")
        self.expected = self._weights(self.folder / "whole")
        with contextlib.suppress(StopRequested):
            run(self.cfg, self.uri, self.place, StopAfter(0))
        self.kept = self.folder / "kept"
        shutil.copytree(self.place, self.kept)

    @staticmethod
    def _weights(place: Path) -> dict[str, torch.Tensor]:
        (file,) = (place / "checkpoints").glob("last-*/model.pt")
        weights: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
        return weights

    def read(self) -> None:
        run(self.cfg, self.uri, self.place)
        found = self._weights(self.place)
        if any(not torch.equal(found[name], value) for name, value in self.expected.items()):
            raise SilentError("other weights than those of the undisturbed run")

    def restore(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.kept, self.place)


class Stage2Source(Trained):
    """The run that a second stage starts from."""

    wanted = ("run.json", "meta.json", "model.pt")

    def read(self) -> None:
        resolved(stage2_run(self.place, "crt", train__epochs=1))


class Canvases(Folder):
    """The cache of canvases: what it gives out is what was decoded."""

    def make(self) -> None:
        make_tiny(str(self.folder / "shards"))
        self.store = ShardStore(str(self.folder / "shards"))
        self.expected = decode_rows(self.store, "train", np.arange(46), 16)
        self.open()

    def open(self) -> np.ndarray:
        opened = open_canvases(self.store, "train", 16, cache_bytes=2**30)
        opened.close()
        return opened.take(np.arange(46))

    def entry(self) -> Path:
        return entry_path(self.store, "train", 16)

    def names(self) -> list[str]:
        return [os.path.relpath(path, self.folder) for path in self.entry().iterdir()]

    def read(self) -> None:
        if not np.array_equal(self.open(), self.expected):
            raise SilentError("other pixels than those that were decoded")


class Originals(Canvases):
    """The cache of whole images."""

    def make(self) -> None:
        super().make()
        self.expected = self.open()

    def open(self) -> np.ndarray:
        opened = open_images(self.store, "train", 12, cache_bytes=2**30)
        opened.close()
        return np.concatenate([opened.image(index)[0].reshape(-1) for index in range(46)])

    def entry(self) -> Path:
        return images_path(self.store, "train", 12)


class GltWorkspace(Folder):
    """What an interrupted build of a benchmark left: the benchmark is the same, whatever of it can still be used."""

    def make(self) -> None:
        root = flat_folder(self.folder)
        (root / "ant" / "day-0.png").write_bytes(b"no image")
        discovery = Discovery(features="random", clusters=3)
        self.choices = GltChoices(discovery=discovery, imbalance_factor=2.0, shard_size=20)
        self.pool = open_pool(DataConfig(uri=str(root)), self.choices)[0]
        self.out = self.folder / "out"
        self.build(here)
        self.expected = file_hashes(self.out)
        shutil.rmtree(self.out)
        with contextlib.suppress(InterruptedError):
            self.build(self.interrupted)
        (self.place,) = self.folder.glob(".out.building-*")
        self.kept = self.folder / "kept"
        shutil.copytree(self.place, self.kept)

    @staticmethod
    def interrupted(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
        for number, task in enumerate(tasks):
            if isinstance(task, ShardTask) and number == 2:
                raise InterruptedError
            yield task, do(task)

    def build(self, run: Run) -> None:
        discover = discovery_of(self.choices.discovery, 0, here)  # type: ignore[arg-type]  # there is one
        build(self.pool, self.choices, str(self.out), run, bar=no_bar, discover=discover, max_bad_samples=1)

    def names(self) -> list[str]:
        return [os.path.relpath(path, self.folder) for path in self.place.rglob("*.json")]

    def read(self) -> None:
        self.build(here)
        if file_hashes(self.out) != self.expected:
            raise SilentError("another benchmark")

    def restore(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.kept, self.place)


class Login(Folder):
    """The netrc in which W&B keeps its key: optional, so never the end of a run."""

    def make(self) -> None:
        key = "0123456789abcdef" * 2 + "01234567"
        (self.folder / "a.netrc").write_text(
            f"machine api.wandb.ai\n  login user\n  password {key}\n\nmachine x\n login y\n"
        )
        os.environ["NETRC"] = str(self.folder / "a.netrc")
        for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
            os.environ.pop(name, None)

    def names(self) -> list[str]:
        return ["a.netrc"]

    def read(self) -> None:
        found = find_key({})
        if not all(value.isprintable() for value in found.values()):
            raise SilentError("a key that no header can carry")


class Claims(Folder):
    """Claims of other processes on a run."""

    def make(self) -> None:
        own = {"host": "box", "machine": "b n", "pid": 7, "born": "12", "since": "2026-01-02", "renewals": 3}
        (self.folder / FOLDER).mkdir()
        (self.folder / FOLDER / "a.json").write_text(json.dumps(own))

    def names(self) -> list[str]:
        return [f"{FOLDER}/a.json"]

    def read(self) -> None:
        for owner in _living(str(self.folder), Lease(str(self.folder / FOLDER / "own.json"), _me()), {}).values():
            str(owner).encode("utf-8", "backslashreplace")


class Bootstrap(Folder):
    """The cluster configuration that `ray up` leaves on the head."""

    def make(self) -> None:
        import yaml

        config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        (self.folder / "ray_bootstrap_config.yaml").write_text(json.dumps(config, default=str))

    def names(self) -> list[str]:
        return ["ray_bootstrap_config.yaml"]

    def read(self) -> None:
        read_limits(self.folder / "ray_bootstrap_config.yaml")


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "sweep page": SweepPage,
    "unfinished sweep page": UnfinishedSweepPage,
    "variants page": VariantsPage,
    "stored sweep": StoredSweep,
    "stored comparison": StoredComparison,
    "run page": RunPage,
    "table": Table,
    "checkpoint meta": CheckpointMeta,
    "checkpoint weights": CheckpointWeights,
    "resume": Resume,
    "stage 2 source": Stage2Source,
    "canvases": Canvases,
    "whole images": Originals,
    "glt workspace": GltWorkspace,
    "login": Login,
    "claims": Claims,
    "bootstrap": Bootstrap,
}
