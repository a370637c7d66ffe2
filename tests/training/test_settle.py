"""What a recipe leaves open is decided when the run begins, said, and kept when it continues."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ltcore.config.load import load_run
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, ConfigError
from ltcore.models.registry import MODELS
from ltcore.models.weights import at_hand, download_command, published_file
from ltcore.training.init_from import weights_file
from ltcore.training.settle import settled


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of torch."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def manifest(num_train: int) -> Any:
    split = SimpleNamespace(num_samples=num_train)
    return SimpleNamespace(
        classes=(), split=lambda name: split, image_size=96, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )


def settle(cfg: RunConfig, num_train: int = 1000, **options: Any) -> tuple[RunConfig, list[str]]:
    said: list[str] = []
    return settled(cfg, manifest(num_train), said.append, **{"typed": {}, "stored": None, **options}), said


def test_the_weights_are_those_that_torchvision_publishes_for_the_network(hub: Path) -> None:
    from torchvision.models import get_model_weights

    for name in ("resnet50", "resnet152", "resnext50_32x4d"):
        assert MODELS[name].weights == str(get_model_weights(name).IMAGENET1K_V1)
    assert published_file("resnet50") == hub / "resnet50-0676ba61.pth"
    assert published_file("resnet32") is None


def test_published_weights_are_taken_where_they_are_at_hand(hub: Path) -> None:
    (hub / "resnet50-0676ba61.pth").touch()
    cfg, said = settle(load_run("folder"))
    assert at_hand("resnet50") and cfg.model.weights == "default"
    assert said == [
        f"resnet50 starts from its published ImageNet weights (model.weights=auto: {hub}/resnet50-0676ba61.pth)",
        "images as the network sees them: data.image_size=224 data.mean=0.485,0.456,0.406 data.std=0.229,0.224,0.225 "
        "data.interpolation=bilinear data.crop_fraction=0.875 data.crop_mode=center (weights)",
    ]
    assert weights_file(cfg.model) == str(hub / "resnet50-0676ba61.pth")
    assert settle(cfg) == (cfg, [])


def test_where_they_are_not_it_says_what_to_do(hub: Path) -> None:
    cfg, said = settle(load_run("folder"))
    assert cfg.model.weights is None and weights_file(cfg.model) is None
    assert len(said) == 1 and "starts from random weights" in said[0] and f"{hub}/resnet50-0676ba61.pth" in said[0]
    assert download_command("resnet50") in said[0] and "--fresh" in said[0]
    cfg, said = settle(load_run("folder_small", {"model.weights": "auto"}))
    assert cfg.model.weights is None
    assert said == ["resnet32 starts from random weights: none are published for it"]


def test_what_continues_keeps_the_weights_with_which_it_began(hub: Path) -> None:
    assert settle(load_run("folder"), stored={"model.weights": "default"})[0].model.weights == "default"
    (hub / "resnet50-0676ba61.pth").touch()
    cfg, said = settle(load_run("folder"), stored={"model.weights": None})
    assert cfg.model.weights is None and "are at hand by now: --fresh" in said[0]


@pytest.mark.parametrize(
    "failed",
    [{"model.name": "resnet152", "model.weights": None}, {"model.weights": "/my.pth"}, {"model.name": "resnet20"}],
)
def test_a_start_that_failed_decides_nothing_for_other_weights(hub: Path, failed: dict[str, Any]) -> None:
    """Under one name, where the record of the first attempt is all that there is."""
    (hub / "resnet50-0676ba61.pth").touch()
    cfg, said = settle(load_run("folder"), stored=failed)
    assert cfg.model.weights == "default" and "starts from its published ImageNet weights" in said[0]


def test_a_node_without_the_weights_is_named(hub: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"model.weights=default: {hub}/resnet50-0676ba61.pth is not on \S+\. Fetch"
    ):
        weights_file(load_run("folder", {"model.weights": "default"}).model)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.weights": "default"}, "model.weights=default: no weights of resnet32 are published"),
        ({"model.weights": "best"}, "model.weights must be null, auto, default or a file .* got 'best'"),
        ({"model.weights": "runs/x.pth"}, "as an absolute path or URI, because workers change directory"),
        ({"model.weights": "/x.pth", "train.init_from": "/run"}, "model.weights=/x.pth would have no effect beside"),
        ({"train.init_from": "/x.pth"}, "train.init_from=/x.pth is a file of weights.*Give the file as model.weights"),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_run("cifar100_lt_ce", keys)


@pytest.mark.parametrize(
    ("num_train", "size", "lr"),
    [(10_000, 64, 0.05), (512, 64, 0.05), (511, 32, 0.025), (40, 8, 0.00625), (7, 8, 0.00625)],
)
def test_few_images_get_smaller_batches_and_a_rate_in_proportion(num_train: int, size: int, lr: float) -> None:
    cfg, said = settle(load_run("folder_small"), num_train)
    assert (cfg.train.batch_size, cfg.train.optim.lr) == (size, pytest.approx(lr))
    assert len(said) == (size < 64) and all(f"batches of {size} instead of 64" in line for line in said)
    assert settle(cfg, num_train) == (cfg, [])


def test_a_batch_size_that_was_typed_or_of_another_recipe_stays() -> None:
    typed = {"train.batch_size": "64"}
    assert settle(load_run("folder_small", typed), 40, typed=typed)[0].train.batch_size == 64
    assert settle(load_run("cifar100_lt_ce"), 40)[0].train.batch_size == 128


def test_accumulation_and_ghost_batches_still_divide_the_batch() -> None:
    cfg = load_run("folder_small", {"train.accumulate": 2, "model.ghost_batch": 8})
    assert settle(cfg, 40)[0].train.batch_size == 16
