"""Where a run goes and on which engine: decided and refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ltcore.batch import Batch
from ltcore.cli import train as cli_train
from ltcore.cli import tune as cli_tune
from ltcore.cli.parsers import read_train, read_tune
from ltcore.cli.prepare import storage_root
from ltcore.cli.train import wants_ray
from ltcore.config.load import load_run, load_sweep
from ltcore.config.naming import name_sweep
from ltcore.config.sweep import read_sweep
from ltcore.errors import CapacityError, CheckpointError, ConfigError, DataError
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.placement import Scaling, check_storage, check_workers, choose_engine, choose_scaling
from ltcore.training.context import LocalContext
from ltcore.training.preflight import check_network
from ltcore.tuning import budget as warmup
from tests.faults import unwritable
from tests.training.runs import tiny_run

LAPTOP = Cluster(local=True, cpus=4, real_cpus=2, gpus=0, nodes=1, address="")
WORKSTATION = Cluster(local=True, cpus=16, real_cpus=16, gpus=1, nodes=1, address="")
POOL = Cluster(local=False, cpus=64, real_cpus=64, gpus=8, nodes=9, address="10.0.0.1:6379")


def test_a_path_of_one_machine_is_refused_on_a_cluster_and_the_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"9 nodes: set LTCORE_STORAGE .* s3://bucket/runs"):
        check_storage("/home/me/runs", POOL)
    check_storage("s3://bucket/runs", POOL)
    check_storage("/home/me/runs", LAPTOP)


def test_storage_is_absolute_because_workers_change_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_root("runs") == str(tmp_path / "runs")
    assert storage_root("s3://bucket/runs/") == "s3://bucket/runs"
    assert Path(storage_root(None)).is_absolute()


@pytest.mark.parametrize(
    ("flags", "engine"),
    [
        ([], "trial"),
        (["--workers", "1"], "trial"),
        (["--workers", "2"], "train"),
        (["--workers", "1-2"], "train"),
        (["--engine", "train"], "train"),
    ],
)
def test_auto_takes_ray_train_for_several_workers_alone(flags: list[str], engine: str) -> None:
    assert choose_engine(read_tune("test", flags)) == engine


@pytest.mark.parametrize(
    ("flags", "through_ray"),
    [
        ([], False),
        (["--engine", "inline"], False),
        (["--engine", "trial"], True),
        (["--workers", "1"], True),
        (["--gpus-per-worker", "0"], True),
        (["--cpus-per-worker", "2"], True),
        (["--max-gpus", "1"], True),
    ],
)
def test_a_single_run_goes_through_ray_where_something_is_asked_of_its_workers(
    flags: list[str], through_ray: bool
) -> None:
    assert wants_ray(read_train("test", ["cifar100_lt_ce", *flags]), load_run("cifar100_lt_ce")) == through_ray


def test_on_a_cluster_every_trial_gets_a_gpu_worker() -> None:
    scaling = choose_scaling(read_tune("test", []), POOL, "train")
    assert (scaling.workers, scaling.gpus_per_worker) == (1, 1.0)
    assert choose_scaling(read_tune("test", ["--workers", "2-4"]), POOL, "train").most == 4
    assert choose_scaling(read_tune("test", []), LAPTOP, "trial").gpus_per_worker == 0


def test_population_based_training_hands_checkpoints_over_in_process() -> None:
    assert choose_engine(read_tune("test", []), "pbt") == "trial"
    for flags in (["--engine", "train"], ["--workers", "2"]):
        with pytest.raises(ConfigError, match=r"sweep.search=pbt needs --engine trial and one worker per trial"):
            choose_engine(read_tune("test", flags), "pbt")


def test_workers_of_one_run_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = read_tune("test", ["--workers", "2", "--gpus-per-worker", "0.5"])
    with pytest.raises(ConfigError, match=r"--gpus-per-worker 0.5 would put workers of one run on the same GPU"):
        choose_scaling(flags, POOL, "train")
    monkeypatch.setenv("LTCORE_DIST_BACKEND", "gloo")
    assert choose_scaling(flags, POOL, "train").gpus_per_worker == 0.5


def test_a_range_of_workers_holds_only_numbers_that_can_share_a_batch() -> None:
    cfg = load_run("cifar100_lt_ce")  # 128 images, 64 lanes
    check_workers(cfg, Scaling(workers=4))
    check_workers(cfg, Scaling(workers=1, max_workers=2))
    with pytest.raises(ConfigError, match=r"^--workers 2-4: Ray may start any number of these. 3 workers cannot share"):
        check_workers(cfg, Scaling(workers=2, max_workers=4))
    with pytest.raises(ConfigError, match=r"^train.accumulate=32 does not divide the 16 images that each of 8 workers"):
        check_workers(load_run("cifar100_lt_ce", {"train.accumulate": 32}), Scaling(workers=8))
    shared = load_run("cifar100_lt_ce", {"train.batch_size": 96, "data.lanes": 96})
    check_workers(shared, Scaling(workers=2, max_workers=4))


def test_the_warm_up_before_a_sweep_computes_where_trials_will(
    tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(LocalContext):
        def __init__(self, device: torch.device | None) -> None:
            assert device is None
            super().__init__(torch.device("meta"))

    class ReachedError(Exception):
        pass

    def augment(batch: Batch, epoch: int, host: Batch) -> Batch:
        assert batch.images_VBCHW.device.type == batch.labels_B.device.type == "meta" != host.labels_B.device.type
        raise ReachedError

    parts = SimpleNamespace(step=SimpleNamespace(objective=None), augment=augment)
    monkeypatch.setattr(warmup, "LocalContext", Elsewhere)
    monkeypatch.setattr(warmup, "build", lambda cfg, loader, ctx: parts)
    with pytest.raises(ReachedError):
        warmup.images_per_s(tiny_run(), tiny_shards, threads=1)


def test_several_workers_need_the_train_engine() -> None:
    with pytest.raises(ConfigError, match=r"--workers 2-2 needs --engine train"):
        choose_scaling(read_tune("test", ["--workers", "2", "--engine", "trial"]), LAPTOP, "trial")


def test_a_run_that_never_fits_is_refused_before_fresh_removes_what_is_stored(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "x" / "run.json"
    record.parent.mkdir()
    record.write_text("{}")
    monkeypatch.setattr(cli_train, "connect", lambda debug=False: LAPTOP)
    monkeypatch.setattr(cli_train, "disconnect", lambda: None)
    words = ["cifar100_lt_ce", "--data", tiny_shards, "--storage", str(tmp_path), "--name", "x", "--fresh"]
    words += ["train.batch_size=8", "tracking.wandb=false"]
    with pytest.raises(CapacityError, match=r"One run needs 8 CPUs; this machine offers at most 4 CPUs"):
        cli_train.train(read_train("train", [*words, "--workers", "8"]))
    with pytest.raises(ConfigError, match=r"--engine inline is one process without Ray"):
        cli_train.train(read_train("train", [*words, "--workers", "1", "--engine", "inline"]))
    assert record.exists()


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_storage_that_cannot_be_written_says_so_before_ray_starts(
    command: str, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(debug: bool = False) -> None:
        pytest.fail("Ray was started first")

    monkeypatch.setattr(cli_train, "connect", connect)
    monkeypatch.setattr("ltcore.runtime.cluster.connect", connect)
    words = ["--data", tiny_shards, "--name", "x", "train.batch_size=8", "tracking.wandb=false"]
    with unwritable(tmp_path / "place") as place, pytest.raises(DataError, match=r"place/x cannot be created: "):
        if command == "train":
            words = ["cifar100_lt_ce", *words, "--storage", str(place), "--workers", "1"]
            cli_train.train(read_train("train", words))
        else:
            cli_tune.tune(read_tune("tune", ["--sweep", "tune_lpa", *words, "--storage", str(place)]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.weights": "/nowhere/resnet.pt"},
            r"model.weights=/nowhere/resnet.pt does not exist. Put the file there",
        ),
        ({"model.name": "timm:resnet18", "model.weights": "no_such_tag"}, r"no_such_tag"),
        ({"model.tune": "adaptformer"}, r"model.tune=adaptformer"),
        ({"model.tune": "partial:40"}, r"model.tune=partial:40"),
    ],
)
def test_what_no_data_can_make_good_is_said_before_they_are_made(
    changes: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: object, **__: object) -> None:
        pytest.fail("the data were made first")

    monkeypatch.setattr(cli_train, "prepare_run", make)
    keys = [f"{key}={value}" for key, value in changes.items()]
    args = read_train("test", ["cifar100_lt_ce", "tracking.wandb=false", "--storage", str(tmp_path), *keys])
    with pytest.raises((ConfigError, CheckpointError), match=said):
        cli_train.train(args)
    assert not list(tmp_path.iterdir())


def test_nor_does_a_sweep_make_them(tmp_path: Path) -> None:
    base = load_run("cifar100_lt_ce", {"model.weights": "/nowhere/resnet.pt"})
    with pytest.raises(CheckpointError, match="does not exist"):
        check_network(base, {"train.optim.lr": "log:0.1,1"})
    check_network(base, {"model.weights": "auto,default"})


@pytest.mark.parametrize("words", [["train.precision=fp16"], ["train.compile=reduce-overhead"]])
def test_a_sweep_on_a_machine_that_cannot_is_refused_before_its_data_are_made(
    words: list[str], tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("ltcore.runtime.doctor.doctor.check_nodes", lambda *_: None)
    monkeypatch.setattr("ltcore.runtime.ray_task.preload", SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr("ltcore.cli.tune.prepare_run", lambda *_, **__: pytest.fail("the data were made first"))
    keys = ["--data", tiny_shards, "train.batch_size=8", *words]
    args = read_tune("test", ["--sweep", "tune_lpa", "--storage", str(tmp_path), "--dry-run", *keys])
    sweep = read_sweep(args.sweep, name_sweep(args.sweep, args.overrides))
    display = SimpleNamespace(say=lambda *_: None, console=None)
    with pytest.raises(ConfigError, match=f"^{words[0]} "):
        cli_tune._tune_on(args, sweep, load_sweep(sweep), str(tmp_path), str(tmp_path / "s"), LAPTOP, display)  # type: ignore[arg-type]
