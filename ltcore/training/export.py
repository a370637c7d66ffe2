"""A trained classifier as one file that runs without ltcore: ONNX or torch.export, normalization included.

Input ``images``: uint8 [B, 3, S, S] RGB for any B >= 1, each image resampled as the file's metadata say under ``input``.
Output ``logits``: float32 [B, C], the mean over experts and mirror images, post-hoc adjustment included; softmax makes them
probabilities. Updates of ``model.tune=lora`` are added to the weights, so the layers are plain ones; the networks that
adaptformer puts beside MLPs stay what they are.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from ltcore.data.augment.ops import scale_and_shift, unit_range
from ltcore.errors import ConfigError, LtcoreError
from ltcore.models.lora import merge_
from ltcore.storage import written
from ltcore.training.predictor import Predictor

FORMATS = (".onnx", ".pt2")
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-3
"""Largest difference between logits of the file and of the checkpoint, relative to the largest logit or 1."""
METADATA = "ltcore.json"
"""Name of the metadata inside a .pt2; in ONNX each entry is a property of its own, 'ltcore.classes' and so on."""

Run = Callable[[Tensor], Tensor]


class ExportedNet(nn.Module):
    """From uint8 images to the logits to predict with."""

    scale: Tensor
    shift: Tensor
    lowered_by: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.net = merge_(copy.deepcopy(predictor.net).cpu().eval())
        scale, shift = scale_and_shift(predictor.mean, predictor.std)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("lowered_by", -predictor.adjusted(torch.zeros(1, len(predictor.classes))))

    def forward(self, images: Tensor) -> Tensor:
        """Computes float32 logits [B, C] of uint8 images [B, 3, S, S]."""
        logits: Tensor = self.net(unit_range(images) * self.scale + self.shift).mean_logits_BC
        return logits - self.lowered_by


def export(predictor: Predictor, file: str, images_BCHW: Tensor) -> float:
    """Writes the classifier to ``file``, .onnx or .pt2, and returns the largest difference between its logits.

    The finished file is compared with the checkpoint on ``images_BCHW``, uint8 [B, 3, S, S], and appears only where the two
    agree to ``TOLERANCE``. Raises ConfigError for another ending, where a package is missing, and for five crops.
    """
    refuse_format(file)
    if predictor.views > 1:
        raise ConfigError(
            f"tta={predictor.tta} cannot be exported: the crops are cut out of whole images, and {file} takes one canvas "
            "of each. Export with tta=none or flip."
        )
    onnx = file.endswith(".onnx")
    write, run = (_write_onnx, _run_onnx) if onnx else (_write_pt2, _run_pt2)
    net = ExportedNet(predictor).eval()
    with written(file) as aside:
        with torch.no_grad():
            write(net, aside, predictor)
        return _checked(file, run(aside), predictor, images_BCHW)


def about(predictor: Predictor) -> dict[str, Any]:
    """Returns what a file says of itself: classes, preparation of images, run, data."""
    side = predictor.image_size
    return {
        "classes": list(predictor.classes),
        "image_size": side,
        "input": f"uint8 RGB [B, 3, {side}, {side}]; {predictor.framing.of_canvas(side)}",
        "output": "logits [B, classes]; softmax makes probabilities",
        "run": predictor.config.name,
        "checkpoint": predictor.place,
        "data_hash": predictor.data_hash,
        "posthoc_tau": predictor.posthoc_tau,
        "tta": predictor.tta,
    }


def _checked(file: str, run: Run, predictor: Predictor, images_BCHW: Tensor) -> float:
    """Returns the largest difference of logits, over the whole batch and over its first image alone."""
    predictor, worst = predictor.to("cpu"), 0.0
    for batch in (images_BCHW, images_BCHW[:1]):
        expected_BC, found_BC = predictor.logits(batch), run(batch)
        difference = float((found_BC - expected_BC).abs().max())
        limit = TOLERANCE * max(1.0, float(expected_BC.abs().max()))
        if not difference <= limit:  # NaN differs as well
            raise LtcoreError(
                f"{file} would predict other logits than {predictor.place}: they differ by up to {difference:.3g}, more than "
                f"{limit:.3g}, so no file is left. Export to the other format ({' or '.join(FORMATS)})."
            )
        worst = max(worst, difference)
    return worst


def _example(predictor: Predictor) -> Tensor:
    return torch.zeros(2, 3, predictor.image_size, predictor.image_size, dtype=torch.uint8)


def refuse_format(file: str) -> None:
    """Raises ConfigError for a file whose ending names no format, or one that needs a package which is not installed."""
    ending = PurePosixPath(file).suffix
    if ending not in FORMATS:
        raise ConfigError(f"{file}: a model is exported as {' or '.join(FORMATS)}. Choose one by the ending.")
    if ending == ".onnx":
        _require_onnx()


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed, which an export to .onnx needs: pip install 'ltcore[export]', or export to .pt2."
        ) from None


def _write_onnx(net: nn.Module, path: Path, predictor: Predictor) -> None:
    program = torch.onnx.export(
        net,
        (_example(predictor),),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
        verbose=False,
    )
    assert program is not None, "what dynamo=True returns"
    for name, value in about(predictor).items():
        program.model.metadata_props[f"ltcore.{name}"] = value if isinstance(value, str) else json.dumps(value)
    program.save(path, external_data=False)


def _run_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images_BCHW: torch.from_numpy(session.run([OUTPUT], {INPUT: images_BCHW.numpy()})[0])


def _write_pt2(net: nn.Module, path: Path, predictor: Predictor) -> None:
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(net, (_example(predictor),), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={METADATA: json.dumps(about(predictor))})


def _run_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(images_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images_BCHW)

    return run
