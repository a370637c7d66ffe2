"""What a dry run checks and measures: it raises what the run would raise, and takes seconds."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ltcore.cli.dry_run import dry_run
from ltcore.cli.train import train_config
from ltcore.config.execution import PlaceArgs
from ltcore.config.schema import RunConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CapacityError, CheckpointError, DataError
from ltcore.text import duration
from ltcore.training import rehearsal
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.rehearsal import Speed, estimate, rehearse
from tests.commands import command
from tests.conftest import make_tiny
from tests.data.small import tiny_png
from tests.training.runs import TERMS, run, stage2_run, tiny_run

__all__ = ["command"]
SPEED = Speed(device="cpu", steps=5, images_per_step=8, train_per_s=4.0, eval_per_s=10.0, read_per_s=3.0)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MEASURE_S", 0.0)
    monkeypatch.setattr(rehearsal, "WARM_UP_S", 0.1)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        TERMS,
        {"objective.base": "paco"},
        {"train.accumulate": 2, "model.ghost_batch": 4, "augment.mixup_alpha": 0.2},
        {"augment.view1": "rrc_flip", "augment.crop_from": "original", "data.image_size": 32},
    ],
)
def test_every_kind_of_run_is_measured_and_nothing_is_left_behind(
    keys: dict[str, Any], tiny_shards: str, tmp_path: Path
) -> None:
    before, state = torch.get_num_threads(), torch.get_rng_state()
    lines = rehearse(tiny_run().replace(keys), tiny_shards, str(tmp_path / "runs"))
    assert lines[0].startswith("Checked: every class has training images; ") and "checkpoints take up to" in lines[0]
    assert "Measured on this machine (cpu: " in lines[1] and "images/s in training" in lines[1]
    assert torch.get_num_threads() == before and torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "runs").exists()


def test_pieces_grow_to_the_whole_pass_and_keep_whole_groups() -> None:
    def sizes(**keys: int) -> list[int]:
        cfg = tiny_run().replace({key.replace("__", "."): value for key, value in keys.items()})
        return [cfg.train.batch_size // cfg.train.accumulate // pieces for pieces in rehearsal._sizes(cfg)]

    assert sizes(train__batch_size=128, model__ghost_batch=32) == [32, 64, 128]
    assert sizes(train__batch_size=128, train__accumulate=4) == [8, 16, 32]
    assert sizes(train__batch_size=20) == [10, 20] and sizes(train__batch_size=7) == [7]


def test_slow_steps_are_measured_on_fewer_images(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def step(parts: object, raw: object, pieces: int, device: object) -> int:
        taken.append(32 // pieces)
        time.sleep(0.06)  # more than half of the warm-up
        return 32 // pieces

    monkeypatch.setattr(rehearsal, "_step", step)
    line = rehearse(tiny_run().replace({"train.batch_size": 32}), tiny_shards, str(tmp_path))[1]
    assert taken == [8, 8, 8]
    assert "1 step of 8 images (of 32 in a batch)" in line and "with reading" not in line


def test_time_is_images_over_speed(tiny_shards: str) -> None:
    cfg, manifest = tiny_run().replace({"train.epochs": 3, "train.batch_size": 8}), read_manifest(tiny_shards)
    line = estimate(cfg, manifest, SPEED, cached=False)
    seconds = 3 * 40 / 4.0 + (3 * 12 + 2 * 14) / 10.0  # 46 training images are 5 batches; validation and two tests
    assert (
        f"takes about {round(seconds)} s" in line and "4 images/s in training, 3 with reading, and 10 in eval" in line
    )
    assert "reading" not in estimate(cfg, manifest, SPEED, cached=True)
    features = cfg.replace({"train.ncm": True})  # as many passes again, and each time the training images
    seconds = 3 * 40 / 4.0 + (3 * (2 * 12 + 46) + 2 * (2 * 14 + 46)) / 10.0
    assert f"takes about {duration(seconds)}" in estimate(features, manifest, SPEED, cached=False)
    means = estimate(cfg.replace({"model.head_init": "class_means"}), manifest, SPEED, cached=False)
    seconds = 3 * 40 / 4.0 + (3 * 12 + 2 * 14 + 46) / 10.0
    assert f"takes about {round(seconds)} s" in means, "a pass over the training images before the first step"


def test_weights_that_do_not_fit_are_found(tiny_shards: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    run(tiny_run(train__epochs=1), tiny_shards, first)
    start = {"train.init_from": str(first)}
    assert (
        f"the weights of {first} fit the network" in rehearse(tiny_run().replace(start), tiny_shards, str(tmp_path))[0]
    )
    for keys, words in (
        ({**start, "model.name": "resnet20"}, "holds another network"),
        ({"train.init_from": str(tmp_path / "none")}, "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=words):
            rehearse(tiny_run().replace(keys), tiny_shards, str(tmp_path))


def test_disks_that_are_too_small_are_found(tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "free_bytes", lambda place: 1000)
    with pytest.raises(
        CapacityError, match=r"the checkpoints take .* MiB, and .* has 0.0 MiB free. .* another --storage"
    ):
        rehearse(tiny_run(), tiny_shards, str(tmp_path))
    with pytest.raises(CapacityError, match=r"data.loader=cache needs .* MiB, and .* set LTCORE_CACHE"):
        rehearse(tiny_run().replace({"data.loader": "cache"}), tiny_shards, str(tmp_path))


def test_checkpoints_take_no_more_than_is_said(tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run().replace({**TERMS, "train.ema_decay": 0.9, "train.epochs": 1})
    run(cfg, tiny_shards, tmp_path / "run")
    ctx, data = LocalContext(torch.device("cpu")), cfg.data
    loader = rehearsal.make_loader(data, tiny_shards, batch_size=8, seed=0)
    said = rehearsal.checkpoint_bytes(cfg, rehearsal.build(cfg, loader, ctx))
    loader.close()
    written = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoints").rglob("*.pt"))
    assert 0.9 * written < said < 4 * written


def test_a_dry_run_is_one_screen_and_starts_nothing(command: Any, tiny_shards: str, tmp_path: Path) -> None:
    words = ["cifar100_lt_ce", "--data", tiny_shards, "--storage", tmp_path / "runs", "train.batch_size=8", "--dry-run"]
    done: SimpleNamespace = command("train", *words, "model.name=resnet8")
    assert done.code == 0 and len(done.out.splitlines()) < 20
    assert "Results can be written to" in done.out and done.out.endswith("Nothing was started (--dry-run).\n")
    assert not list((tmp_path / "runs").iterdir())


def test_a_storage_that_cannot_be_written_is_found(command: Any, tiny_shards: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["cifar100_lt_ce", "--data", tiny_shards, "--storage", tmp_path / "file", "train.batch_size=8", "--dry-run"]
    done = command("train", *words)
    assert done.code == 1 and "cannot be written" in done.err


def test_a_class_without_training_images_is_found(tmp_path: Path) -> None:
    for split, classes in (("train", ("ant",)), ("test", ("ant", "bee"))):
        for name in classes:
            for n in range(8):
                (tmp_path / "images" / split / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / "images" / split / name / f"{n}.png").write_bytes(tiny_png(n))
    cfg: RunConfig = tiny_run().replace({"data.uri": str(tmp_path / "images"), "train.batch_size": 4})
    with pytest.raises(DataError, match="bee"):
        rehearse(cfg, prepare(cfg.data), str(tmp_path))


def test_of_a_sweep_the_number_of_runs_is_said(tiny_shards: str, tmp_path: Path) -> None:
    text = dry_run(tiny_run(), tiny_shards, str(tmp_path), runs="The sweep has 8 trials")
    assert "The sweep has 8 trials; the times above are of one run." in text
    assert "The sweep" not in dry_run(tiny_run(), tiny_shards, str(tmp_path))


REFUSED: dict[str, tuple[list[str], str]] = {
    "half precision": (["train.precision=fp16"], r"train.precision=fp16 is for GPUs, and this run is on the cpu"),
    "CUDA graphs": (["train.compile=reduce-overhead"], "train.compile=reduce-overhead replays CUDA graphs"),
    "compiler": (["train.compile=default"], "train.compile=default needs a C++ compiler"),
    "on local Ray": (["train.precision=fp16", "--workers", "1"], "train.precision=fp16 is for GPUs"),
    "workers": (["--workers", "3"], "3 workers cannot share"),
    "engine": (["--workers", "2", "--engine", "inline"], "--engine inline is one process without Ray"),
    "trial": (["--workers", "2", "--engine", "trial"], "--workers 2-2 needs --engine train"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("dry", [True, False])
def test_what_a_run_refuses_is_refused_before_the_data_are_made(
    command: Any, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dry: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("ltcore.cli.train.cluster_address", lambda: "")
    monkeypatch.setattr("ltcore.cli.train.prepare_run", lambda *_, **__: pytest.fail("the data were made first"))
    words, message = REFUSED[name]
    base = ["cifar100_lt_ce", "--data", tiny_shards, "--storage", tmp_path, "train.batch_size=8", "data.lanes=8"]
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        done = command("train", *base, *words, *["--dry-run"] * dry)
    assert done.code == 2 and message in " ".join(done.err.split())


def test_of_a_cluster_it_says_what_only_its_workers_know(
    command: Any, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.cli.train.cluster_address", lambda: "10.0.0.1:6379")
    words = ["cifar100_lt_ce", "--data", tiny_shards, "--storage", tmp_path, "train.batch_size=8", "model.name=resnet8"]
    done = command("train", *words, "train.precision=fp16", "--workers", "1", "--dry-run")
    assert done.code == 0 and "train.precision: whether the cluster's workers can do that, only they know" in done.err


def test_a_name_that_is_taken_is_found(command: Any, tiny_shards: str, tmp_path: Path) -> None:
    """By a run that is going on, as by a finished one."""
    first = tiny_run(train__epochs=2, name="taken")
    with pytest.raises(StopRequested):
        run(first, tiny_shards, tmp_path / "taken", until=1)
    other = first.replace({"train.optim.lr": 0.01, "data.uri": tiny_shards})
    args = PlaceArgs(storage=str(tmp_path), dry_run=True)
    with pytest.raises(
        CheckpointError, match=r"belongs to another configuration \(train.optim.lr: 0.05 there, 0.01 now"
    ):
        train_config(other, args)
    same = first.replace({"data.uri": tiny_shards})
    assert train_config(same, args) is None
    run(first, tiny_shards, tmp_path / "taken")
    with pytest.raises(CheckpointError, match=r"belongs to another configuration"):
        train_config(other, args)


def test_data_of_another_stage_1_are_found(tiny_shards: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    make_tiny(other, seed=1)
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "first")
    cfg = stage2_run(tmp_path / "first", "tau_norm")
    args = PlaceArgs(storage=str(tmp_path / "runs"), dry_run=True)
    assert train_config(cfg.replace({"data.uri": tiny_shards}), args) is None
    with pytest.raises(CheckpointError, match=r"was trained on data .* Give the data of stage 1"):
        train_config(cfg.replace({"data.uri": other}), args)
