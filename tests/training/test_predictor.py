"""The classifier in a checkpoint: what it takes as images, in which portions, on which device, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ltcore
from ltcore.batch import Batch
from ltcore.data.augment.augment import Augment
from ltcore.errors import ConfigError, DataError
from ltcore.training.predict import evaluate
from ltcore.training.predictor import Predictor


def images(tmp_path: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{n}.png" for n in range(count)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return files


def test_any_number_of_files_goes_through_in_batches(
    stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    call = Predictor.__call__

    def counted(self: Predictor, images_BCHW: Tensor) -> Tensor:
        sizes.append(len(images_BCHW))
        return call(self, images_BCHW)

    predictor, files = ltcore.load(stage1), images(tmp_path, 200)
    whole = predictor.predict(files)
    monkeypatch.setattr(Predictor, "__call__", counted)
    monkeypatch.setattr("ltcore.training.predictor.BATCH_BYTES", 16 * 3 * 16 * 16 * 4)
    parts = predictor.predict(files)
    assert max(sizes) == 16 and sum(sizes) == 200
    assert [name for name, _ in parts] == [name for name, _ in whole]
    assert [p for _, p in parts] == pytest.approx([p for _, p in whole], abs=1e-6)


def test_one_image_bytes_and_pil_images_are_images_too(stage1: Path, tmp_path: Path) -> None:
    predictor, (file, other) = ltcore.load(stage1), images(tmp_path, 2)
    (expected,) = predictor.predict([file])
    for one in (file, str(file), file.read_bytes(), Image.open(file)):
        assert predictor.predict(one) == [expected]
    assert predictor.predict([file.read_bytes(), Image.open(other)]) == predictor.predict([file, other])
    assert predictor.predict(image for image in (file, other)) == predictor.predict([file, other])
    assert predictor.predict([]) == []


@pytest.mark.parametrize("kind", ["turned", "deep", "palette"])
def test_a_pil_image_is_the_same_image_as_its_file(stage1: Path, tmp_path: Path, kind: str) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "image.png"
    if kind == "deep":  # which PIL itself would turn to white
        Image.fromarray(rng.integers(0, 65536, (16, 16), dtype=np.uint16)).save(file)
    else:
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6
        (image.quantize(8) if kind == "palette" else image).save(file, exif=exif)
    predictor = ltcore.load(stage1)
    given = Image.open(file)
    assert torch.equal(predictor.read(given), predictor.read(file))
    assert torch.equal(predictor.read([given, given])[1:], predictor.read(file)), "what was given stays as it is"


def test_arrays_have_channels_last_and_tensors_first(stage1: Path, tmp_path: Path) -> None:
    predictor = ltcore.load(stage1)
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    tensor_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
    expected = predictor.read(Image.fromarray(pixels_HWC))
    assert torch.equal(predictor.read(pixels_HWC), expected) and torch.equal(predictor.read(tensor_CHW), expected)
    assert torch.equal(predictor.read(np.stack([pixels_HWC] * 2)), expected.expand(2, -1, -1, -1))
    assert torch.equal(predictor.read(torch.stack([tensor_CHW] * 2)), expected.expand(2, -1, -1, -1))
    grey = predictor.read(Image.fromarray(pixels_HWC[:, :, 0]))
    assert torch.equal(predictor.read(pixels_HWC[:, :, 0]), grey)


def test_top_classes_and_probabilities_agree_with_the_call(stage1: Path, tmp_path: Path) -> None:
    predictor, files = ltcore.load(stage1), images(tmp_path, 5)
    proba_BC = predictor.predict_proba(files)
    assert proba_BC.shape == (5, 4) and np.allclose(proba_BC, predictor(predictor.read(files)).numpy(), atol=1e-6)
    for row, tops in zip(proba_BC, predictor.predict_top(files, 9), strict=True):
        assert [name for name, _ in tops] == [predictor.classes[c] for c in np.argsort(-row)]
        assert [p for _, p in tops] == pytest.approx(sorted(row.tolist(), reverse=True))
    assert predictor.predict_proba([]).shape == (0, 4)
    with pytest.raises(ConfigError, match="k=0: expected at least 1"):
        predictor.predict_top(files, 0)


def test_flip_is_the_mean_of_the_logits_of_image_and_mirror_image(stage1: Path, tiny_shards: str) -> None:
    plain, flip = ltcore.load(stage1), ltcore.load(stage1, tta="flip")
    images_BCHW = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    both = (plain.logits(images_BCHW) + plain.logits(images_BCHW.flip(-1))) / 2
    assert torch.allclose(flip.logits(images_BCHW), both, atol=1e-5)
    assert torch.allclose(flip(images_BCHW), both.softmax(1), atol=1e-6)
    assert evaluate(flip, tiny_shards, [], [])["tta"] == "flip"
    with pytest.raises(ConfigError, match=r"tta='five' is unknown\. Known: none, flip, five_crop"):
        ltcore.load(stage1, tta="five")


def test_a_device_that_is_not_there_is_refused(stage1: Path) -> None:
    predictor = ltcore.load(stage1, device="auto")
    assert predictor.to("cpu") is predictor and predictor.device == torch.device("cpu")
    for wrong in ("cuda:99", "gpu"):
        with pytest.raises(ConfigError, match=rf"device='{wrong}': .*Known here: 'auto', 'cpu'"):
            ltcore.load(stage1, device=wrong)


def test_logits_are_bitwise_those_of_an_evaluation(stage1: Path, tiny_shards: str) -> None:
    predictor = ltcore.load(stage1)
    images_BCHW = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    augment = Augment(predictor.config.augment, seed=0, mean=predictor.mean, std=predictor.std, num_views=1)
    nothing = torch.zeros(6, dtype=torch.int64)
    batch = augment.evaluate(Batch(images_BCHW[None], nothing, nothing, nothing))
    assert torch.equal(predictor.normalize(images_BCHW), batch.images_VBCHW[0])


def test_what_is_no_image_is_named(stage1: Path, tmp_path: Path) -> None:
    predictor, (file,) = ltcore.load(stage1), images(tmp_path, 1)
    (tmp_path / "cut.png").write_bytes(file.read_bytes()[:200])
    os.mkfifo(tmp_path / "pipe.png")
    for wrong, words in (
        (tmp_path / "none.png", r"none.png cannot be read: No such file"),
        (tmp_path / "pipe.png", r"pipe.png is no plain file"),
        ([file, b"no image"], r"image 1, given as bytes: the image cannot be decoded"),
        ([file, Image.open(tmp_path / "cut.png")], r"image 1, given as a PIL image: the image cannot be decoded"),
        ([file, 5], r"Image 1 is a int, expected a path, the bytes of a file, a PIL image, a uint8 array"),
        (torch.zeros(2, 3, 16, 16), r"Image 0 is a tensor of torch.float32 \[3, 16, 16\], expected a path"),
        (
            torch.zeros(16, 16, 3).byte(),
            r"Image 0 is a tensor of torch.uint8 \[16, 16, 3\], .*a uint8 tensor \[3, H, W\]",
        ),
        (np.zeros((3, 16, 16), np.uint8), r"Image 0 is an array of uint8 \[3, 16, 16\], .*a uint8 array \[H, W, 3\]"),
        (np.zeros((0, 5, 3), np.uint8), r"Image 0 is an array of uint8 \[0, 5, 3\]"),
        (5, r"Expected a path, the bytes of a file, .*, or several of them, got a int"),
    ):
        with pytest.raises(DataError, match=words):
            predictor.predict(wrong)  # type: ignore[arg-type]
