"""Runs that start from pretrained weights see images as these expect them, and so does whatever continues or uses them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ltcore
from ltcore.config.load import load_run
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.config.show import INPUT_NOTE, show_run
from ltcore.data.images.decode import decode_image
from ltcore.data.images.framed import framed
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import CheckpointError, ConfigError
from ltcore.models.weights import IMAGENET, WeightsInput, expected_input
from ltcore.reporting.card import model_card
from ltcore.reporting.page import machine
from ltcore.reporting.records import read_run
from ltcore.training import checkpoint as ckpt
from ltcore.training import weights_input
from ltcore.training.export import about
from ltcore.training.predict import evaluate
from ltcore.training.settle import settled
from ltcore.training.stage2.source import resolved
from ltcore.training.weights_input import KEYS, differs_by_run, with_input
from tests.training.runs import run, stage2_run, tiny_run

MANIFEST: Any = SimpleNamespace(
    classes=(),
    split=lambda name: SimpleNamespace(num_samples=1000),
    image_size=96,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
)
OWN = WeightsInput(
    image_size=20,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    interpolation="bicubic",
    crop_fraction=0.8,
    crop_mode="border",
)
DEFAULTS = dict.fromkeys(("interpolation", "crop_fraction", "crop_mode"), "default")
FRAMED = {f"data.{name}": value for name, value in asdict(OWN).items()}


def settle(cfg: RunConfig, typed: dict[str, Any], stored: dict[str, Any] | None = None) -> tuple[RunConfig, list[str]]:
    said: list[str] = []
    return settled(cfg, MANIFEST, said.append, typed=typed, stored=stored), said


def with_weights(**keys: Any) -> RunConfig:
    return load_run(
        "cifar100_lt_ce",
        {"model.name": "resnet50", "model.weights": "/r.pth", **{f"data.{key}": value for key, value in keys.items()}},
    )


def test_weights_say_what_is_null_and_keys_win() -> None:
    cfg, said = settle(with_weights(), {})
    assert {key: cfg.to_dict()["data"][key] for key in asdict(IMAGENET)} == json.loads(json.dumps(asdict(IMAGENET)))
    assert len(said) == 1 and said[0].endswith("data.crop_fraction=0.875 data.crop_mode=center (weights)")
    assert settle(cfg, {}) == (cfg, [])
    typed = {"data.mean": "0.1,0.2,0.3", "data.crop_fraction": 1}
    cfg, (line,) = settle(with_weights(mean="0.1,0.2,0.3", crop_fraction=1), typed)
    assert (cfg.data.mean, cfg.data.crop_fraction, cfg.data.image_size) == ((0.1, 0.2, 0.3), 1, 224)
    assert "data.mean=0.1,0.2,0.3 data.crop_fraction=1 (key)" in line and "data.image_size=224 data.std" in line


def test_without_weights_nothing_changes_and_a_key_is_said() -> None:
    cfg = load_run("cifar100_lt_ce")
    assert settle(cfg, {}) == (cfg, [])
    cfg, (line,) = settle(cfg.replace({"data.mean": "0,0,0"}), {"data.mean": "0,0,0"})
    assert line == (
        "images as the network sees them: data.image_size=96 data.std=0.2,0.2,0.2 (data set), data.mean=0,0,0 (key), "
        "data.interpolation=bilinear data.crop_fraction=1 data.crop_mode=center (default)"
    )


def test_small_canvases_hold_images_whole() -> None:
    cfg, (line,) = settle(with_weights(image_size=64), {})
    assert (cfg.data.mean, cfg.data.image_size) == (IMAGENET.mean, 64)
    assert cfg.data.interpolation is cfg.data.crop_fraction is cfg.data.crop_mode is None
    assert "data.crop_fraction=1 data.crop_mode=center (default)" in line
    assert settle(with_weights(image_size=65), {})[0].data.crop_fraction == 0.875


def test_what_continues_keeps_what_it_began_with() -> None:
    began = settle(with_weights(std="0.3,0.3,0.3"), {})[0].to_flat()
    cfg, said = settle(with_weights(std="0.3,0.3,0.3"), {}, began)
    assert cfg.to_flat() == began and len(said) == 1
    before_there_was_this = {key: value for key, value in began.items() if key not in KEYS}
    assert settle(with_weights(), {}, before_there_was_this) == (with_weights(), [])


def test_runs_of_a_sweep_that_vary_the_network_have_inputs_of_their_own() -> None:
    assert differs_by_run(["model.weights"]) and differs_by_run(["train.optim.lr", "data.image_size"])
    assert not differs_by_run(["train.optim.lr", "data.mean"])
    said: list[str] = []
    cfg = settled(with_weights(), MANIFEST, said.append, typed={}, stored=None, varied=["model.name"])
    assert cfg == with_weights() and not said
    assert with_input(cfg).data.mean == IMAGENET.mean


def test_what_weights_expect() -> None:
    assert expected_input("resnet50", "default") == expected_input("resnext50_32x4d", "/x.pth") == IMAGENET
    assert expected_input("resnet50", None) is None and expected_input("resnet32", "/x.pth") is None
    pytest.importorskip("timm")
    lite = expected_input("timm:tf_efficientnet_lite0", "/x.safetensors")
    assert lite == WeightsInput(
        image_size=224,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        crop_fraction=0.875,
        crop_mode="center",
    )
    with pytest.raises(ConfigError, match=r"those of timm:vit_base_patch16_sapiens2 expect images of 1024x768 px"):
        expected_input("timm:vit_base_patch16_sapiens2", "default")


def test_published_weights_of_torchvision_expect_what_it_says() -> None:
    from torchvision.models import get_weight

    from ltcore.models.registry import MODELS

    for row in MODELS.values():
        if row.weights:
            theirs = get_weight(row.weights).transforms()
            assert (theirs.crop_size, theirs.resize_size) == ([224], [256]) and theirs.interpolation.value == "bilinear"
            assert (tuple(theirs.mean), tuple(theirs.std)) == (IMAGENET.mean, IMAGENET.std)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mean", "0.5,0.5", r"data.mean must be three numbers in \[0, 1\].*got 0.5,0.5"),
        ("std", "0,1,1", r"data.std must be three numbers in \[1e-06, 1\].*got 0.0,1.0,1.0"),
        ("mean", "120,120,120", r"data.mean must be three numbers in \[0, 1\]"),
        ("interpolation", "lanczos", "data.interpolation must be bilinear or bicubic|data.interpolation"),
        ("crop_fraction", 0, r"data.crop_fraction must be in \(0, 2\]"),
        ("crop_mode", "corner", "data.crop_mode"),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_run("cifar100_lt_ce", {f"data.{key}": value})


def test_show_says_that_weights_fill_keys() -> None:
    assert INPUT_NOTE in show_run("folder") and INPUT_NOTE not in show_run("cifar100_lt_ce")


@pytest.fixture(scope="module")
def finished(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on canvases of 20 px, framed otherwise than without keys."""
    folder = tmp_path_factory.mktemp("input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCORE_CACHE", str(folder / "cache"))
        run(tiny_run(data__uri=tiny_shards).replace(FRAMED), tiny_shards, folder / "tiny")
    return folder / "tiny"


def test_the_record_and_the_checkpoint_say_it(finished: Path) -> None:
    record = RunRecord.read(str(finished))
    assert record is not None and record.data.input is not None
    said = record.data.input
    assert {name: getattr(said, name) for name in asdict(OWN)} == asdict(OWN)
    assert set(said.sources.values()) == {"key"}
    found = ckpt.read(finished)
    assert (found.meta["mean"], found.meta["std"], found.meta["image_size"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 20)


def test_prediction_evaluation_and_export_prepare_images_alike(finished: Path, tiny_shards: str) -> None:
    predictor, store = ltcore.load(finished), ShardStore(tiny_shards)
    rows = store.read_rows("test", np.arange(14))
    expected = np.stack([framed(decode_image(row, "x"), 20, predictor.framing) for row in rows])
    canvases = predictor.read(rows)
    np.testing.assert_array_equal(canvases.numpy(), expected)
    np.testing.assert_array_equal(predictor.decode(rows[0], "x"), expected[0])
    color = torch.tensor(OWN.mean).view(3, 1, 1)
    torch.testing.assert_close(
        predictor.normalize(canvases), (canvases / 255 - color) / torch.tensor(OWN.std).view(3, 1, 1)
    )
    right = (predictor.logits(canvases).argmax(1).numpy() == store.labels("test")[:14]).mean()
    assert store.manifest.split("test").num_samples == 14
    metrics = evaluate(predictor, tiny_shards, ["test"], [])["splits"]["test"]
    record = RunRecord.read(str(finished))
    assert record is not None and record.test is not None
    assert metrics["top1"] == pytest.approx(right)
    assert metrics["top1"] == (record.test_best or record.test)["test"]["top1"]
    assert "the long side is resized to 25 px, bicubic as PIL does it" in about(predictor)["input"]
    assert "on a ground of RGB 26 51 76" in model_card(str(finished))
    assert record.data.input is not None and "data.std=0.4,0.5,0.6" in record.data.input.text
    stored = read_run(finished)
    assert dict(machine([stored], None))["images"] == record.data.input.text


def test_stage_2_and_init_from_take_it_over(
    finished: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = resolved(stage2_run(finished, "ncm"))
    assert {name: getattr(second.data, name) for name in asdict(OWN)} == asdict(OWN)
    run(second, tiny_shards, tmp_path / "second")
    assert ckpt.read(tmp_path / "second").meta["mean"] == [0.1, 0.2, 0.3]
    later = with_input(tiny_run(train__init_from=str(finished)))
    assert (later.data.mean, later.data.std, later.data.image_size) == (OWN.mean, OWN.std, 20)
    assert later.data.crop_mode is None, "20 px"
    monkeypatch.setattr(weights_input, "LARGE_PX", 16)
    later = with_input(tiny_run(train__init_from=str(finished)))
    assert {name: getattr(later.data, name) for name in asdict(OWN)} == asdict(OWN)
    assert with_input(tiny_run(train__init_from="/nowhere")) == tiny_run(train__init_from="/nowhere")


@pytest.mark.parametrize("keys", [{"mean": "0.1,0.2,0.3"}, {"std": "0.4,0.5,0.6", "crop_mode": "border"}, {}])
def test_init_from_takes_over_each_key_that_is_there(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that run left others to its data set."""
    theirs = tiny_run().replace({f"data.{name}": value for name, value in keys.items()})
    monkeypatch.setattr(ckpt, "read", lambda *_: SimpleNamespace(config=lambda: theirs))
    monkeypatch.setattr(weights_input, "fetched_checkpoint", lambda *_, **__: contextlib.nullcontext(Path(__file__)))
    mine = with_input(tiny_run(train__init_from="/there", data__image_size=None))
    for name in asdict(OWN):
        assert getattr(mine.data, name) == (getattr(theirs.data, name) if name in keys else None)
    assert with_input(tiny_run(train__init_from="/there", data__mean="0.5,0.5,0.5")).data.mean == (0.5, 0.5, 0.5)


def test_a_run_does_not_continue_with_another_input(finished: Path, tiny_shards: str) -> None:
    changed = tiny_run(data__uri=tiny_shards).replace({**FRAMED, "data.crop_mode": "squash"})
    with pytest.raises(CheckpointError, match=r"data\.crop_mode"):
        run(changed, tiny_shards, finished)


def test_a_start_that_failed_hands_nothing_to_other_weights() -> None:
    """Under one name, with the record of the first attempt, which had no checkpoint yet."""
    cfg = RunConfig(name="x").replace({"model.name": "resnet50"})
    stored = {**cfg.to_flat(), "data.image_size": 64}
    assert with_input(cfg, stored).data.image_size == 64
    assert with_input(cfg, {**stored, "model.name": "resnet152"}).data.image_size is None


def test_the_record_says_nothing_of_a_start_that_failed(
    tmp_path: Path, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise CheckpointError("no such weights")

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="no such weights"):
        patch.setattr("ltcore.training.run.fit", fails)
        run(tiny_run(data__uri=tiny_shards, train__epochs=1).replace(FRAMED), tiny_shards, tmp_path / "tiny")
    failed = RunRecord.read(str(tmp_path / "tiny"))
    assert failed is not None and failed.data.input is not None and failed.data.input.crop_mode == "border"
    run(tiny_run(data__uri=tiny_shards, train__epochs=1), tiny_shards, tmp_path / "tiny")
    record = RunRecord.read(str(tmp_path / "tiny"))
    assert record is not None and record.data.input is not None and record.status == "finished"
    assert record.data.input.sources == {**dict.fromkeys(("image_size", "mean", "std"), "data set"), **DEFAULTS}
