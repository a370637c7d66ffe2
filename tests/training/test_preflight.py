"""What is checked against the data before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli import train as launch
from ltcore.cli.parsers import read_train
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.training.preflight import check_network, check_run
from tests.training.runs import run, stage2_run, tiny_run, weights

TABLE = "objective.base_options.cross_entropy.class_weights"


def test_patience_needs_validation_images(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    bare = replace(manifest, class_counts={k: v for k, v in manifest.class_counts.items() if k != "val"})
    check_run(tiny_run(train__patience=2), manifest)
    check_run(tiny_run(), bare)
    check_run(stage2_run("/run", "crt", train__patience=2), bare)
    with pytest.raises(ConfigError, match=r"^train\.patience=2: tiny has no validation image"):
        check_run(tiny_run(train__patience=2), bare)


def test_class_weights_name_classes_of_the_data(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    name = manifest.classes[3]
    check_run(tiny_run(**{TABLE: "natural", "train.sampling": "class_balanced"}), manifest)
    for value in ("auto", None, {name: 2.0}, [1, 2, 3, 4]):
        check_run(tiny_run(**{TABLE: value}), manifest)
    with pytest.raises(ConfigError, match=rf"^{TABLE}: no class is named '{name}x'. Did you mean {name}"):
        check_run(tiny_run(**{TABLE: {f"{name}x": 2.0}}), manifest)
    with pytest.raises(ConfigError, match=rf"^{TABLE} is a list of 2 weights for 4 classes"):
        check_run(tiny_run(**{TABLE: "[1, 2]"}), manifest)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model.tune": "lora", "model.lora.rank": 64},
            r"^model.lora.rank=64 is not below the smaller dimension of all 7 layers \(trunk.conv1: 16 outputs, 27 inputs; .*; "
            r"\.\.\.\), beside which it trains more than they have; 15 is the most that suits all of them. Set that, or",
        ),
        (
            {"model.tune": "adaptformer", "model.adaptformer.bottleneck": 65, "model.name": "timm:test_vit"},
            r"^model.adaptformer.bottleneck=65 is above the width of all 6 layers .* 64 is the most that suits",
        ),
    ],
)
def test_what_is_added_is_smaller_than_what_it_stands_beside(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_network(tiny_run(**keys))
    of_rows = {key: value - 1 for key, value in keys.items() if isinstance(value, int)}
    check_network(tiny_run(**{**keys, **of_rows}))


def test_bottlenecks_that_follow_from_the_classes_are_checked_with_them(tiny_shards: str) -> None:
    """LIFT's rule gives 1 for four classes, and for 8,192 in six blocks 512 beside a width of 64."""
    manifest = read_manifest(tiny_shards)
    cfg = tiny_run(model__name="timm:test_vit", model__tune="adaptformer", data__image_size="32")
    check_run(cfg, manifest)
    names = tuple(f"c{n}" for n in range(8192))
    counts = {split: (5,) * len(names) for split in manifest.class_counts}
    many = replace(manifest, classes=names, class_counts=counts, shot_groups=("many",) * len(names))
    with pytest.raises(
        ConfigError, match=r"bottleneck=null, here 512, is above the width of all 6 layers .*Set that, or"
    ):
        check_run(cfg, many)


def test_the_command_says_it_before_it_writes(tiny_shards: str, tmp_path: Path) -> None:
    args = [
        "cifar100_lt_ce",
        "--data",
        tiny_shards,
        "--storage",
        str(tmp_path),
        "tracking.wandb=false",
        f"{TABLE}={{x: 2}}",
    ]
    with pytest.raises(ConfigError, match="no class is named 'x'"):
        launch.train(read_train("", args))
    assert not list(tmp_path.rglob("run.json"))


def test_weights_change_what_is_learned(tiny_shards: str, tmp_path: Path) -> None:
    """A table of ones is the plain loss; a heavy class is predicted more often."""
    plain: dict[str, Any] = {"train.epochs": 2}
    run(tiny_run(**plain), tiny_shards, tmp_path / "plain")
    run(tiny_run(**plain, **{TABLE: [1, 1, 1, 1]}), tiny_shards, tmp_path / "ones")
    run(tiny_run(**plain, **{TABLE: "auto"}), tiny_shards, tmp_path / "auto")
    base, ones, auto = (weights(tmp_path / name) for name in ("plain", "ones", "auto"))
    assert all((ones[name] == value).all() for name, value in base.items())
    assert any((auto[name] != value).any() for name, value in base.items())
