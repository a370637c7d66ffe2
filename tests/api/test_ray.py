"""Inside a Ray that the program has started itself: it is used, freed again, and left running."""

from __future__ import annotations

import _thread
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import ltcore
from ltcore.runtime import cluster
from ltcore.runtime.cluster import quiet
from ltcore.runtime.progress import ProgressDisplay

pytestmark = pytest.mark.ray
KEYS: dict[str, Any] = {
    "model.name": "resnet8",
    "train.batch_size": 8,
    "train.threads": 1,
    "train.optim.warmup": 0,
    "tracking.wandb": False,
    "tracking.tensorboard": False,
}
SPACE = {
    "objective.terms.lpa.weight": None,
    "objective.terms.dro.radius": None,
    "objective.terms.ifl.num_envs": None,
    "train.optim.lr": {"log": [0.01, 0.1]},
}
LONG = 10_000
"""Epochs that no test waits for."""


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    """Starts a Ray of one CPU, for which drivers, controllers and workers must not wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        quiet()
        ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        yield
        ray.shutdown()


def interrupt_once_a_run_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    update = ProgressDisplay.update
    done: list[bool] = []

    def interrupting(self: ProgressDisplay, snapshot: dict[str, dict[str, Any]]) -> None:
        update(self, snapshot)
        if not done and any(state.get("epoch", 0) >= 1 for state in snapshot.values()):
            done.append(True)
            _thread.interrupt_main()

    monkeypatch.setattr(ProgressDisplay, "update", interrupting)


def wait_until_free() -> None:
    for _ in range(60):
        if ray.available_resources().get("CPU") == 1:
            return
        time.sleep(0.5)
    pytest.fail(f"{ray.available_resources()} after half a minute: something runs on")


@pytest.mark.slow
def test_a_run_is_interrupted_and_goes_on(
    color_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = {**KEYS, "train.checkpoint_every_s": 0.001}
    place = {"data": color_shards, "storage": tmp_path / "runs", "name": "x", "engine": "trial", "verbose": False}
    with monkeypatch.context() as patch:
        interrupt_once_a_run_moves(patch)
        with pytest.raises(KeyboardInterrupt):
            ltcore.train("cifar100_lt_ce", **place, **cfg, **{"train.epochs": LONG})  # type: ignore[arg-type]
    wait_until_free()
    assert ray.is_initialized()
    stopped = ltcore.open_run(tmp_path / "runs" / "x")
    assert stopped.record.epochs_done >= 1 and list(Path(stopped.uri).glob("checkpoints/last-*"))
    run = ltcore.train("cifar100_lt_ce", **{**place, "name": "y"}, **cfg, **{"train.epochs": 2})  # type: ignore[arg-type]
    assert (run.status, run.record.engine) == ("finished", "trial") and run.metrics.keys() == {"test_cbl", "test_gbl"}
    assert ray.is_initialized() and capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_sweep_is_interrupted_and_another_runs(
    color_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(name: str, epochs: int, engine: str) -> ltcore.api.Sweep:
        return ltcore.tune(
            "cifar100_lt_ce",
            space=SPACE,
            num_trials=2,
            data=color_shards,
            storage=tmp_path / "runs",
            name=name,
            engine=engine,
            verbose=False,
            **{"sweep.retrain_seeds": 1, "sweep.budget_s": None, "train.epochs": epochs},
            **KEYS,
        )

    with monkeypatch.context() as patch:
        interrupt_once_a_run_moves(patch)
        with pytest.raises(KeyboardInterrupt):
            tune("long", LONG, "trial")
    wait_until_free()
    assert ltcore.open_sweep(tmp_path / "runs" / "long").status == "stopped"
    sweep = tune("short", 2, "train")
    assert sweep.status == "finished" and sweep.params.keys() == {"train.optim.lr"}
    assert len(sweep.to_dataframe()) == 2
    assert (
        sweep.best.record.kind == "retrain"
        and sweep.metrics["test_cbl"].keys() <= sweep.best.metrics["test_cbl"].keys()
    )
    assert sweep.predictor().classes == ("red", "green", "blue")
    assert ray.is_initialized() and "winner=" in repr(sweep)


@pytest.mark.slow
def test_a_connection_inside_another_ends_what_the_first_one_started() -> None:
    """As in benchmarks, whose parts connect for themselves."""
    ray.shutdown()
    cluster.connect()
    cluster.connect()
    cluster.disconnect()
    assert not ray.is_initialized()
