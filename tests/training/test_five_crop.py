"""Predictions and metrics by five crops: the mean of their logits, the same on every way, and never taken for plain ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltcore
from ltcore.cli.main import evaluate as command
from ltcore.cli.parsers import add_prediction_flags, command_parser
from ltcore.data.images.five_crop import five_crops
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError, DataError
from ltcore.training.export import export
from ltcore.training.predict import evaluate
from ltcore.training.predictions import predict_split
from ltcore.training.predictor import TTA


def photos(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + n, 31 - n, 3), dtype=np.uint8) for n in range(count)]


def test_logits_are_the_mean_over_the_crops(stage1: Path) -> None:
    plain, five = ltcore.load(stage1), ltcore.load(stage1, tta="five_crop")
    images = photos(4)
    read = five.read(images)
    assert read.shape == (4, 5, 3, 16, 16) and five.canvas_shape == (5, 3, 16, 16)
    np.testing.assert_array_equal(read[1].numpy(), five_crops(images[1].transpose(2, 0, 1), 16))
    expected = torch.stack([plain.logits(crops) for crops in read.unbind(1)]).mean(0)
    torch.testing.assert_close(five.logits(read), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, plain.logits(plain.read(images)), atol=1e-3)
    with pytest.raises(DataError, match=r"shape \[B, 5, 3, 16, 16\], got torch.uint8 \[4, 3, 16, 16\]"):
        five.logits(plain.read(images))


def test_every_kind_of_image_gives_the_same_crops(stage1: Path, tmp_path: Path) -> None:
    five, (image, *_) = ltcore.load(stage1, tta="five_crop"), photos(1)
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = five.read(image)
    file = tmp_path / "image.png"
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for other in (file, file.read_bytes(), Image.open(file), tensor, [image]):
        assert torch.equal(five.read(other), expected)
    assert five.read([]).shape == (0, 5, 3, 16, 16)
    assert five.batch_size < ltcore.load(stage1).batch_size or five.batch_size == 512


def test_evaluation_predicts_what_predictions_of_the_split_are(stage1: Path, tiny_shards: str) -> None:
    five = ltcore.load(stage1, tta="five_crop")
    found = evaluate(five, tiny_shards, ["test"], [])
    parts = list(predict_split(five, ShardStore(tiny_shards), "test", logits=True))
    labels = [label for part in parts for label in part.labels]
    best = [five.classes[c] for part in parts for c in part.classes_Bk[:, 0]]
    accuracy = np.mean([mine == label for mine, label in zip(best, labels, strict=True)])
    assert found["tta"] == "five_crop" and found["splits"]["test"]["top1"] == pytest.approx(accuracy)
    support = sum(found["support"]["test"])
    assert support == len(labels)


def test_its_metrics_have_a_file_of_their_own(
    stage1: Path, tiny_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tta in TTA:
        assert command(None, [str(stage1), "--data", tiny_shards, "--split", "test", "--tta", tta]) == 0
    assert "five_crop" in capsys.readouterr().out.replace("\n", "")
    files = {json.loads(file.read_text())["tta"]: file.name for file in (stage1 / "metrics").glob("*-test*.json")}
    assert set(files) >= set(TTA) and len(set(files.values())) == len(files)
    assert files["five_crop"].endswith("-test-five_crop.json") and files["flip"].endswith("-test-flip.json")


def test_the_library_takes_it_too(stage1: Path, tiny_shards: str) -> None:
    found = ltcore.evaluate(stage1, tiny_shards, splits=["test"], tta="five_crop", verbose=False)
    assert found.record["tta"] == "five_crop" and found.predictor().tta == "five_crop"
    with pytest.raises(ConfigError, match=r"tta='ten_crop' is unknown\. Known: none, flip, five_crop"):
        ltcore.evaluate(stage1, tiny_shards, tta="ten_crop", verbose=False)


def test_a_file_cannot_crop(stage1: Path, tmp_path: Path) -> None:
    five = ltcore.load(stage1, tta="five_crop")
    with pytest.raises(ConfigError, match=r"tta=five_crop cannot be exported.*Export with tta=none or flip"):
        export(five, str(tmp_path / "model.pt2"), five.read(photos(1)))
    assert not list(tmp_path.iterdir())


def test_the_flag_takes_what_the_predictor_takes() -> None:
    parser = command_parser(None)
    add_prediction_flags(parser)
    assert [parser.parse_args(["--tta", word]).tta for word in TTA] == list(TTA)
