"""Exported files compute the checkpoint's logits for any batch, say what they are, and do not appear where they differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ltcore
from ltcore.errors import ConfigError, LtcoreError
from ltcore.training import export as exporting
from ltcore.training.export import export
from ltcore.training.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(stage1: Path) -> Predictor:
    """With everything that changes logits."""
    return ltcore.load(stage1, posthoc_tau=1.0, tta="flip")


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_onnx(predictor: Predictor, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "model.onnx"
    assert export(predictor, str(file), images(5)) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "one file, weights inside"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        (logits,) = session.run(["logits"], {"images": images(count).numpy()})
        assert torch.allclose(torch.from_numpy(logits), predictor.logits(images(count)), atol=1e-4)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["ltcore.classes"]) == list(predictor.classes) and said["ltcore.image_size"] == "16"
    assert said["ltcore.data_hash"] == predictor.data_hash and said["ltcore.tta"] == "flip"


def test_pt2(predictor: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    assert export(predictor, str(file), images(5)) < 1e-4
    found = {"ltcore.json": ""}
    module = torch.export.load(file, extra_files=found).module()
    for count in (1, 7):
        assert torch.allclose(module(images(count)), predictor.logits(images(count)), atol=1e-4)
    assert json.loads(found["ltcore.json"])["classes"] == list(predictor.classes)


def test_a_file_that_differs_is_not_left(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_write_pt2", lambda net, path, predictor: path.write_bytes(b""))
    for wrong in (0.5, float("nan")):
        monkeypatch.setattr(exporting, "_run_pt2", lambda path, by=wrong: lambda x: predictor.logits(x) + by)
        with pytest.raises(LtcoreError, match=r"would predict other logits than .*so no file is left"):
            export(predictor, str(tmp_path / "model.pt2"), images(2))
        assert not list(tmp_path.iterdir())


def test_other_endings_and_missing_packages_are_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"model\.pth: a model is exported as \.onnx or \.pt2"):
        export(predictor, "model.pth", images(1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"onnx\w* is not installed.*pip install 'ltcore\[export\]', or export to \.pt2"
    ):
        export(predictor, str(tmp_path / "model.onnx"), images(1))
