"""The command lines meet what is wrong: an exit code, one sentence, no traceback, and the corrected command works after it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ltcore.data.shards.manifest import MANIFEST, read_manifest, write_manifest
from ltcore.errors import CheckpointError, DataError, NumericError
from ltcore.objective.losses.cross_entropy import CrossEntropy
from ltcore.training import checkpoint as ckpt
from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from tests.commands import Command
from tests.conftest import make_tiny, png
from tests.faults import files_no_larger_than, full_disk, unwritable
from tests.paths import ROOT
from tests.training.runs import StopAfter, assert_equal_runs, run, tiny_run, weights

SMALL = (
    "model.name=resnet8",
    "train.epochs=2",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.threads=1",
    "train.optim.lr=0.05",
    "tracking.wandb=false",
    "tracking.tensorboard=false",
)


@pytest.fixture
def train(command: Command, tmp_path: Path) -> Command:
    """``train.py`` on given data, small, into a storage of its own."""

    def call(data: object, *more: str) -> SimpleNamespace:
        keys = {word.partition("=")[0]: word for word in (*SMALL, *more) if not word.startswith("--")}
        flags = [word for word in more if word.startswith("--")]
        where = () if any(word.startswith("--storage") for word in flags) else (f"--storage={tmp_path / 'runs'}",)
        words = ("cifar100_lt_ce", "--engine=inline", f"--data={data}", *where, *flags, *keys.values())
        return command("train", *words, "--name=small")

    return call


@pytest.fixture
def copy(tiny_shards: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


def refusal(done: SimpleNamespace, code: int = 1) -> str:
    """The one sentence (or two: what is wrong, what to do) that stands on stderr beside the lines of progress."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err + done.out
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and done.err.splitlines()[-1] == errors[0], done.err
    assert "unexpected" not in errors[0]
    return errors[0]


def trains(done: SimpleNamespace) -> None:
    assert done.code == 0, done.err
    assert "error:" not in done.err
    assert re.search(r" epochs \([1-9][\d,]* images\) on ", done.err), "the budget is said before it starts"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.optim.lrr=1",), "train.optim.lrr: unknown key. Did you mean train.optim.lr"),
        (("objective.terms.dor.radius=1",), "Did you mean"),
        (("train.epochs=0",), "train.epochs"),
        (("train.optim.lr=-1",), "train.optim.lr"),
        (("data.lanes=many",), "data.lanes"),
        (("data.loader=disk",), "data.loader must be one of auto, cache, threads, ray, got 'disk'"),
        (("data.max_bad_samples=-1",), "data.max_bad_samples must be >= 0"),
        (("data.train_split=test",), "train_split must name a split that is not a test"),
    ],
)
def test_keys_and_values(
    train: Command, tiny_shards: str, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    assert message in refusal(train(tiny_shards, *words), code=2)
    assert not (tmp_path / "runs").exists()


def shard(folder: Path, split: str = "train", number: int = 0) -> Path:
    return folder / read_manifest(str(folder)).split(split).shards[number].path


def missing(folder: Path) -> None:
    shard(folder).unlink()


def truncated(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size // 2)


def empty(folder: Path) -> None:
    os.truncate(shard(folder), 0)


def flipped(folder: Path) -> None:
    """One bit of an image. Labels come from the index, whose hash is known, so one of a ``.cls`` would change nothing."""
    data = bytearray(shard(folder).read_bytes())
    data[data.index(b"IDAT")] ^= 1
    shard(folder).write_bytes(data)


def no_index(folder: Path) -> None:
    shard(folder).with_suffix(".parquet").unlink()


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 500)


def wrong_counts(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    raw["class_counts"]["train"] = [22, 13, 7, 4]
    (folder / MANIFEST).write_text(json.dumps(raw))


def foreign_index(folder: Path) -> None:
    """The index of another shard, vouched for: so is a label outside the classes, an image under a foreign key."""
    manifest = read_manifest(str(folder))
    first, *rest = manifest.split("train").shards
    other = dataclasses.replace(first, index_path=rest[0].index_path, index_sha256=rest[0].index_sha256)
    splits = {**manifest.splits, "train": dataclasses.replace(manifest.split("train"), shards=(other, *rest))}
    write_manifest(dataclasses.replace(manifest, splits=splits), str(folder))


def test_damaged_shards_of_every_kind(train: Command, tiny_shards: str, tmp_path: Path) -> None:
    for damage, words in (
        (missing, r"train-00000\.tar cannot be opened: No such file"),
        (truncated, r"train-00000\.tar: found \d+ bytes, expected \d+ by the manifest"),
        (empty, r"train-00000\.tar: found 0 bytes"),
        (flipped, r"train-00000\.tar: found sha256 .* expected .*restore it or make the data set again"),
        (no_index, r"train-00000\.parquet does not exist"),
        (cut_manifest, r"manifest\.json is no manifest"),
        (wrong_counts, r"train-labels\.npy has .* the manifest says"),
        (foreign_index, r"indexes of train have|found the member|expected 9 whole ones"),
    ):
        folder = Path(shutil.copytree(tiny_shards, tmp_path / damage.__name__))
        damage(folder)
        for kind in ("cache", "threads"):
            assert re.search(words, refusal(train(folder, f"data.loader={kind}"))), damage.__name__
    trains(train(tiny_shards))
    assert json.loads((tmp_path / "runs" / "small" / "run.json").read_text())["status"] == "finished"
    assert not list(Path(os.environ["LTCORE_CACHE"]).rglob("*.partial"))


def test_what_the_data_lack(train: Command, copy: Path, tmp_path: Path) -> None:
    assert "no split 'train_cbl'. Did you mean train?" in refusal(train(copy, "data.train_split=train_cbl"))
    assert "there is nothing. Did you mean digits-glt, mnist-glt?" in refusal(train("digits-gtl"))
    assert "train.batch_size=64 exceeds the 46 training images" in refusal(train(copy, "train.batch_size=64"), code=2)
    manifest = read_manifest(str(copy))
    extended = dataclasses.replace(
        manifest,
        classes=(*manifest.classes, "eel"),
        shot_groups=(*manifest.shot_groups, "few"),
        class_counts={split: (*counts, 0) for split, counts in manifest.class_counts.items()},
    )
    write_manifest(extended, str(copy))
    assert "1 of 5 classes have no training sample in split train (eel)" in refusal(train(copy))
    write_manifest(manifest, str(copy))
    trains(train(copy))


def test_a_bad_image_and_the_request_to_skip_it(
    train: Command, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny(str(tmp_path / "bad"))
    spoil_first_image(tmp_path / "bad")
    assert "the image cannot be decoded" in refusal(train(tmp_path / "bad"))
    found = command("shards", "check", tmp_path / "bad")
    assert found.code == 1 and "cannot be decoded" in found.out and "Traceback" not in found.err
    trains(train(tmp_path / "bad", "data.max_bad_samples=1"))
    told = [record.getMessage() for record in caplog.records if "cannot be decoded" in record.getMessage()]
    assert len(told) == 1 and "1 of at most 1 (data.max_bad_samples)" in told[0]


def spoil_first_image(folder: Path) -> None:
    """Makes the first training image undecodable in tar, index and manifest, as if it had been packed so."""
    import zlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_manifest(str(folder))
    first, *rest = manifest.split("train").shards
    table = pq.read_table(folder / first.index_path)
    row = table.slice(0, 1).to_pylist()[0]
    image = b"\0" * row["size"]
    tar = bytearray((folder / first.path).read_bytes())
    tar[row["offset"] : row["offset"] + row["size"]] = image
    (folder / first.path).write_bytes(tar)
    crcs = pa.array([zlib.crc32(image), *table["crc32"].to_pylist()[1:]], pa.uint32())
    pq.write_table(table.set_column(table.schema.get_field_index("crc32"), "crc32", crcs), folder / first.index_path)
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (first.path, first.index_path)]
    first = dataclasses.replace(first, sha256=hashes[0], index_sha256=hashes[1])
    splits = {**manifest.splits, "train": dataclasses.replace(manifest.split("train"), shards=(first, *rest))}
    write_manifest(dataclasses.replace(manifest, splits=splits), str(folder))


# ---- checkpoints


def unfinished(tmp_path: Path, tiny_shards: str, **changes: Any) -> Path:
    """A run that stopped after its first epoch, with a checkpoint."""
    run_dir = tmp_path / "run"
    with pytest.raises(StopRequested):
        run(tiny_run(**changes), tiny_shards, run_dir, StopAfter(0))
    return run_dir


def checkpoint_of(run_dir: Path) -> Path:
    found = ckpt.find(run_dir / "checkpoints")
    assert found is not None
    return found.path


def test_a_checkpoint_that_does_not_belong_here(train: Command, tiny_shards: str, tmp_path: Path) -> None:
    trains(train(tiny_shards))
    run_dir = tmp_path / "runs" / "small"
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    meta_file = checkpoint_of(run_dir) / "meta.json"
    meta = json.loads(meta_file.read_text())
    for change, words in (
        ({"schema": 99}, "has checkpoint version 99; this ltcore reads version 1"),
        ({"data_hash": "f" * 64}, "was trained on data ffffffffffff"),
        ({"config": {**meta["config"], "seed": 7}}, "belongs to another configuration (seed: 7 there, 0 now)"),
        ({"config": None}, "config is None, expected dotted keys with values"),
        ({"data_hash": 5}, "data_hash is 5, expected a hash"),
    ):
        meta_file.write_text(json.dumps({**meta, **change}))
        assert words in refusal(train(tiny_shards))
    for text in ("", "{", "[]", "\udcff"):
        meta_file.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert "meta.json" in refusal(train(tiny_shards))
    meta_file.write_text(json.dumps(meta))
    assert "seed: 0 there, 3 now" in refusal(train(tiny_shards, "--seed=3"))
    trains(train(tiny_shards))
    trains(train(tiny_shards, "--seed=3", "--fresh"))


def test_no_flipped_or_missing_byte_of_a_checkpoint_is_taken_for_the_weights(tmp_path: Path) -> None:
    meta: dict[str, Any] = {"config": {}, "data_hash": ""}
    model = {"w": torch.arange(200.0), "n": torch.tensor(3)}
    path = ckpt.save(tmp_path, "last", step=1, model=model, state=None, meta=meta)
    whole, refused = (path / "model.pt").read_bytes(), 0
    for place in range(0, len(whole), 3):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
            (path / "model.pt").write_bytes(damaged)
            try:
                found = ckpt.read(path).model_state()
            except CheckpointError as error:
                refused += 1
                assert "model.pt cannot be read" in str(error) and "\n" not in str(error)
            else:
                assert found.keys() == model.keys() and all(torch.equal(found[name], model[name]) for name in model)
    assert refused > len(whole) // 3


@pytest.mark.parametrize("limit", [0, 100, 1000, 4000, 20_000, 40_500])
def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path: Path, limit: int) -> None:
    folder, meta = tmp_path / "checkpoints", {"config": {}, "data_hash": ""}
    first = ckpt.save(folder, "last", step=1, model={"w": torch.ones(9)}, state={"n": 1}, meta=meta)
    large = {"w": torch.ones(10_000)}
    for _ in range(2):
        with (
            files_no_larger_than(limit),
            pytest.raises(CheckpointError, match=r"File too large\. Free space.*untouched"),
        ):
            ckpt.save(folder, "last", step=2, model=large, state={"n": 2}, meta=meta)
        assert list(folder.iterdir()) == [first]
    ckpt.save(folder, "last", step=2, model=large, state={"n": 2}, meta=meta)
    found = ckpt.find(folder)
    assert found is not None and torch.equal(found.model_state()["w"], large["w"])


def test_a_file_system_without_space_or_permission_for_a_checkpoint(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        ckpt.save(folder, "last", step=1, model={"w": torch.ones(40_000)}, state=None, meta={})

    with full_disk(tmp_path / "disk", 100_000) as disk:
        with pytest.raises(CheckpointError, match=r"(No space left on device|File too large)\. Free space"):
            save(disk / "checkpoints")
        assert list((disk / "checkpoints").iterdir()) == []
    with (
        unwritable(tmp_path / "place") as place,
        pytest.raises(CheckpointError, match=r"(Read-only file system|Permission denied).* correct the permissions"),
    ):
        save(place / "checkpoints")


# ---- numbers


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint_from_which_the_run_goes_on(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_run(), tiny_shards, tmp_path / "whole")
    run_dir = unfinished(tmp_path, tiny_shards)
    good, forward = checkpoint_of(run_dir), CrossEntropy.forward
    calls = []

    def poisoned(self: CrossEntropy, *args: Any) -> torch.Tensor:
        calls.append(1)
        return forward(self, *args) * (float("nan") if len(calls) == 3 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEntropy, "forward", poisoned)
        with pytest.raises(NumericError) as found:
            run(tiny_run(), tiny_shards, run_dir)
    assert str(found.value).startswith(f"Step 8: base is not finite (nan); the last good checkpoint is {good}.")
    assert checkpoint_of(run_dir) == good
    run(tiny_run(), tiny_shards, run_dir)
    assert_equal_runs(tmp_path / "whole", run_dir)


def test_a_step_that_spoils_the_weights_is_not_saved_though_its_loss_is_finite(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = unfinished(tmp_path, tiny_shards)
    monkeypatch.setattr(fit, "DECIDE_EVERY", 1)
    step = fit.Trainer._step

    def spoiling(self: Any, raw: Any) -> Any:
        parts = step(self, raw)
        if self.at.step == 7:
            with torch.no_grad():
                next(self.components.eval_net.parameters()).fill_(float("inf"))
        return parts

    with monkeypatch.context() as patch:
        patch.setattr(fit.Trainer, "_step", spoiling)
        with pytest.raises(NumericError, match=r"Step 7 left weights that are not finite.*last-00000006\."):
            run(tiny_run(train__checkpoint_every_s=0.0001), tiny_shards, run_dir)
    assert all(bool(value.isfinite().all()) for value in weights(run_dir).values())


def test_a_diverging_run_of_the_command_line(train: Command, tiny_shards: str, tmp_path: Path) -> None:
    text = refusal(train(tiny_shards, "train.optim.lr=1e30", "train.optim.warmup=0"))
    assert re.search(r"Step \d+: base is not finite .*there is no checkpoint yet\. Lower train\.optim\.lr", text)
    assert json.loads((tmp_path / "runs" / "small" / "run.json").read_text())["status"] == "failed"
    trains(train(tiny_shards, "--fresh"))


# ---- as programs


def script(name: str, *arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, whose files may not grow beyond ``limit`` bytes."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, f"pipelines/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in ("LTCORE_DATA", "LTCORE_STORAGE")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        preexec_fn=restrict,
    )


@pytest.mark.slow
def test_make_shards_on_a_full_disk_and_again(tmp_path: Path) -> None:
    images = tmp_path / "pets"
    for n in range(20):
        file = images / ("ant", "bee")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(np.random.default_rng(n)))
    full = script("make_shards", images, tmp_path / "out", "--val-per-class", 1, limit=12_000)
    assert full.returncode == 1
    last = full.stderr.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'out'} cannot be written: ") and "free space" in last
    assert "Traceback" not in full.stderr and list(tmp_path.iterdir()) == [images]
    whole = script("make_shards", images, tmp_path / "out", "--val-per-class", 1)
    assert whole.returncode == 0, whole.stderr
    sound = script("make_shards", "check", tmp_path / "out")
    assert (sound.returncode, sound.stdout) == (0, ""), sound.stderr


@pytest.mark.slow
def test_train_on_a_damaged_shard_and_a_traceback_on_request(copy: Path, tmp_path: Path) -> None:
    flipped(copy)
    words = ("cifar100_lt_ce", "--engine=inline", f"--data={copy}", f"--storage={tmp_path / 'runs'}", *SMALL)
    done = script("train", *words)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"error: {copy}/train-00000.tar: found sha256") and "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "cifar100_lt_ce" / "checkpoints").exists()
    told = script("train", *words, "--debug")
    assert told.returncode == 1 and "Traceback" in told.stderr and told.stderr.splitlines()[-1] == lines[-1]


def test_a_record_or_an_image_that_cannot_be_read_is_named(tiny_shards: str, tmp_path: Path) -> None:
    import ltcore

    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    with pytest.raises(DataError, match=r"missing\.png cannot be read: No such file"):
        ltcore.load(tmp_path / "run").read([tmp_path / "missing.png"])
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is not JSON .*--fresh"):
        run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    for meta in (tmp_path / "run" / "checkpoints").glob("*/meta.json"):
        meta.write_text(json.dumps({"schema": json.loads(meta.read_text())["schema"], "step": 5}))
    with pytest.raises(CheckpointError, match=r"meta\.json has no 'attribute_counts'"):
        ltcore.load(tmp_path / "run")


def test_a_place_in_which_no_run_can_be_made_is_named(tiny_shards: str) -> None:
    with pytest.raises(DataError, match=r"/proc/nowhere/run cannot be created: .*--storage"):
        run(tiny_run(train__epochs=1), tiny_shards, Path("/proc/nowhere/run"))
