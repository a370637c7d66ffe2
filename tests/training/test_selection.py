"""A metric that never has a value on the data chooses nothing, which is said before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltcore import storage
from ltcore.cli import train as launch
from ltcore.cli import tune as launch_sweep
from ltcore.cli.parsers import read_train, read_tune
from ltcore.data.shards.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from ltcore.data.shards.source import Sample
from ltcore.errors import ConfigError
from ltcore.runtime import cluster
from ltcore.runtime import ray_task as worker
from ltcore.runtime.cluster import Cluster
from ltcore.runtime.doctor import doctor as doctor_nodes
from ltcore.training.selection import available, check_selection
from tests.conftest import png
from tests.shards import write_dataset
from tests.training.runs import run, tiny_run

LAPTOP = Cluster(local=True, cpus=4, real_cpus=2, gpus=0, nodes=1, address="")


@pytest.fixture
def manifest(tiny_shards: str) -> Manifest:
    """Four classes: many, medium, few, few."""
    return read_manifest(tiny_shards)


def without_val(manifest: Manifest, *groups: str) -> Manifest:
    """Without validation images of these groups of classes."""
    counts = [
        0 if group in groups else n for group, n in zip(manifest.shot_groups, manifest.class_counts["val"], strict=True)
    ]
    return replace(manifest, class_counts={**manifest.class_counts, "val": tuple(counts)})


def test_a_group_without_validation_images_chooses_nothing(manifest: Manifest) -> None:
    check_selection({"sweep.metric": "val/few", "train.select": "val/medium"}, manifest)
    lacking = without_val(manifest, "few")
    assert "val/few" not in available(lacking) and "val/top1" in available(lacking)
    with pytest.raises(
        ConfigError,
        match=r"sweep.metric=val/few: no few-shot class .* of tiny, .* There are val/balanced_accuracy, val/top1, ",
    ):
        check_selection({"train.select": "val/top1", "sweep.metric": "val/few"}, lacking)
    with pytest.raises(ConfigError, match=r"^train.select=val/few: no few-shot class"):
        check_selection({"train.select": "val/few"}, lacking)


def test_what_a_metric_needs_is_said(manifest: Manifest) -> None:
    everything = {"train.select": "val/ece", "sweep.metric": "val/few/ece"}
    check_selection(everything, manifest)
    with pytest.raises(ConfigError, match=r"val/top5: top-5 needs more than 5 classes, there are 4 in the validation"):
        check_selection({"train.select": "val/top5"}, manifest)
    with pytest.raises(
        ConfigError, match=r"sweep.metric=val/few/ece: no few-shot class has a sample in the validation"
    ):
        check_selection(everything, without_val(manifest, "few"))


def test_metrics_of_attributes_choose_where_the_data_have_attributes(manifest: Manifest) -> None:
    check_selection({"train.select": "val/attribute_rank/rare", "sweep.metric": "val/worst_group"}, manifest)
    with pytest.raises(
        ConfigError, match=r"val/attribute_rank/second: it needs more than 2 attributes, there are 2 in"
    ):
        check_selection({"train.select": "val/attribute_rank/second"}, manifest)
    with pytest.raises(ConfigError, match=r"val/attribute_gap: it needs more than 1 attributes, there are none in"):
        check_selection({"train.select": "val/attribute_gap"}, replace(manifest, attributes=()))


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "absent"])
def test_without_validation_images_nothing_is_chosen_and_a_single_run_still_trains(
    manifest: Manifest, empty: bool
) -> None:
    bare = without_val(manifest, "many", "medium", "few")
    if not empty:
        counts = {name: row for name, row in manifest.class_counts.items() if name != "val"}
        bare = replace(manifest, class_counts=counts)
    check_selection({"train.select": "val/balanced_accuracy"}, bare)
    for key, metric in (("sweep.metric", "val/balanced_accuracy"), ("train.select", "val/few")):
        with pytest.raises(ConfigError, match=rf"^{key}={metric}: tiny has no validation image"):
            check_selection({key: metric}, bare)


@pytest.fixture
def all_medium(tiny_shards: str, tmp_path: Path) -> str:
    """Data whose classes are all of one group; nothing is read of them but the manifest."""
    uri = str(tmp_path / "medium")
    manifest = read_manifest(tiny_shards)
    write_manifest(replace(manifest, shot_groups=("medium",) * 4), uri)
    assert storage.exists(storage.join(uri, MANIFEST))
    return uri


@pytest.mark.parametrize("flags", [(), ("--dry-run",)], ids=["run", "dry"])
def test_training_and_sweeps_refuse_it_at_the_start(
    all_medium: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    places = ["--data", all_medium, "--storage", str(tmp_path / "runs"), "--name", "x", *flags]
    with pytest.raises(ConfigError, match=r"train.select=val/few: no few-shot class"):
        launch.train(read_train("train", ["cifar100_lt_ce", "train.select=val/few", *places]))

    def nothing(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(cluster, "connect", lambda debug=False: LAPTOP)
    monkeypatch.setattr(cluster, "disconnect", nothing)
    monkeypatch.setattr(doctor_nodes, "check_nodes", nothing)
    monkeypatch.setattr(worker.preload, "remote", nothing)
    with pytest.raises(ConfigError, match=r"sweep.metric=val/few: no few-shot class"):
        launch_sweep.tune(read_tune("tune", ["sweep.metric=val/few", "train.batch_size=8", *places]))
    assert not (tmp_path / "runs" / "x" / "sweep.json").exists()


def test_a_metric_without_a_value_is_refused_by_the_first_epoch(tmp_path: Path) -> None:
    """Two classes with two attributes each: of two there is no second, though there are four."""
    rng = np.random.default_rng(0)
    rows = [Sample(f"{c}-{n}", png(rng), "png", c, 2 * c + n % 2) for c in range(2) for n in range(8)]
    uri = str(tmp_path / "shards")
    write_dataset(
        uri, classes="ab", attributes="wxyz", splits=dict.fromkeys(("train", "val", "test"), rows), image_size=16
    )
    cfg = tiny_run(train__select="val/attribute_rank/second", train__epochs=1)
    check_selection({"train.select": cfg.train.select}, read_manifest(uri))
    with pytest.raises(
        ConfigError, match=r"^train\.select=val/attribute_rank/second: it has no value on the validation"
    ):
        run(cfg, uri, tmp_path / "run")
