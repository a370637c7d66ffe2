"""A trained classifier as an object: images in, classes, probabilities or logits out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ltcore.batch import ModelOutput
from ltcore.config.schema import RunConfig
from ltcore.data.augment.ops import scale_and_shift, unit_range
from ltcore.data.images.decode import Pixels, decode_canvas
from ltcore.data.images.five_crop import NUM_CROPS, decode_five, five_crops
from ltcore.data.images.given import IMAGES, ImageLike, canvas_of, is_one, whole_of
from ltcore.errors import ConfigError, DataError, NumericError
from ltcore.evaluation.pairs import AttributeCounts
from ltcore.framing import OWN_WAY, Framing
from ltcore.models.views import over_views
from ltcore.objective.losses.logit_adjust import posthoc_logits
from ltcore.training.hardware import compute_float32_exactly

T = TypeVar("T")
BATCH_BYTES = 64 * 2**20
"""Of the float32 images of one forward pass."""
MOST_PER_BATCH = 512
FLIP, FIVE_CROP = "flip", "five_crop"
TTA = ("none", FLIP, FIVE_CROP)
"""Test-time augmentation: none, or the mean of the logits over the image and its mirror image, or over five crops of the
image (``data.images.five_crop``)."""


class Mirrored(nn.Module):
    """A network whose logits are the mean of those of the image and of its mirror image.

    The mean is of the logits, as it is over experts, so that post-hoc adjustment and softmax come after it.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images_BCHW: Tensor) -> ModelOutput:
        """Computes the output for the images, with the mean of both logits."""
        out: ModelOutput = self.net(images_BCHW)
        mirrored: ModelOutput = self.net(images_BCHW.flip(-1))
        return replace(out, logits_BC=(out.logits_BC + mirrored.logits_BC) / 2)


@dataclass(frozen=True)
class Predictor:
    """A trained classifier. Call it with images; it returns probabilities.

    Wherever a method takes images, they are one or several of: paths, bytes of files, PIL images, uint8 arrays [H, W, 3]
    or [H, W] (numpy), uint8 tensors [3, H, W] (torch); RGB, of any size. They are prepared as in evaluation: brought to
    [3, S, S] as ``framing`` says (or to five crops, see ``tta``), and normalized. Raises DataError for what is missing or no
    image, NumericError where the network computes numbers that are not finite.
    """

    net: nn.Module
    config: RunConfig
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shot_groups: tuple[str, ...]
    """[C] many, medium or few, by the images that it was trained on."""
    place: str
    """Path or URI of the checkpoint."""
    data_hash: str
    """Hash of the data that it was trained on."""
    attributes: tuple[str, ...]
    """Names of the attributes of the data that it was trained on."""
    attribute_counts: AttributeCounts
    """Training images of each class and attribute."""
    posthoc_tau: float = 0.0
    """Strength of post-hoc logit adjustment; 0 is none."""
    log_prior_C: Tensor | None = None
    """[C] log class shares that the classifier was trained on; only where it is adjusted."""
    framing: Framing = OWN_WAY
    """How whole images are brought to [3, S, S]."""
    tta: str = "none"
    """Test-time augmentation, one of ``TTA``; of the mirror image ``net`` does it."""

    @property
    def device(self) -> torch.device:
        """Returns the device of the network, which is where predictions are computed."""
        return next(self.net.parameters()).device

    def to(self, device: str | torch.device) -> Predictor:
        """Moves the network to a device, or to the GPU where there is one ('auto'), and returns the predictor."""
        found = find_device(device)
        compute_float32_exactly(found)
        self.net.to(found)
        return self

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Returns float32 [B, C] logits for uint8 RGB images [B, 3, S, S], on their device, post-hoc adjustment included.

        With five crops they are [B, 5, 3, S, S], as ``read`` makes them. Raises DataError for other shapes.
        """
        if images_BCHW.dtype != torch.uint8 or images_BCHW.shape[1:] != self.canvas_shape:
            raise DataError(
                f"Expected uint8 images of shape [B, {', '.join(map(str, self.canvas_shape))}], got {images_BCHW.dtype} "
                f"{list(images_BCHW.shape)}. Predictor.read(images) makes them."
            )
        inputs = self.normalize(images_BCHW.to(self.device))
        views_VBCHW = inputs.transpose(0, 1) if self.views > 1 else inputs[None]
        logits_BC = over_views(self.net, views_VBCHW).mean_logits_BC
        return self.adjusted(self.finite(logits_BC)).to(images_BCHW.device)

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Returns float32 [B, C] probabilities for what ``logits`` takes, with its errors."""
        return self.logits(images_BCHW).softmax(1)

    def adjusted(self, logits_BC: Tensor) -> Tensor:
        """Returns the [B, C] logits to predict with.

        They are lowered by ``posthoc_tau`` times the log prior where the classifier is adjusted.
        """
        if self.log_prior_C is None:
            return logits_BC
        return posthoc_logits(logits_BC, self.log_prior_C.to(logits_BC.device), self.posthoc_tau)

    def finite(self, logits_BC: Tensor) -> Tensor:
        """Returns the logits. Raises NumericError where some are not finite.

        Finite weights may be too large to compute with.
        """
        if not bool(torch.isfinite(logits_BC).all()):
            raise NumericError(f"{self.place} predicts numbers that are not finite. Use another checkpoint.")
        return logits_BC

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """Returns the network's input for uint8 images, float32 on the same device: bitwise that of an evaluation."""
        scale, shift = (part.to(images_BCHW.device) for part in scale_and_shift(self.mean, self.std))
        return unit_range(images_BCHW) * scale + shift

    def read(self, images: Iterable[ImageLike] | ImageLike) -> Tensor:
        """Prepares images as uint8 [B, 3, S, S], or [B, 5, 3, S, S] with five crops: the input of a call.

        One image is a batch of one.
        """
        canvases = list(self._canvases(images))
        if not canvases:
            return torch.empty(0, *self.canvas_shape, dtype=torch.uint8)
        return torch.from_numpy(np.stack(canvases))

    def decode(self, data: bytes, where: str) -> Pixels:
        """Returns the encoded image as one row of what ``read`` makes.

        ``where`` names it in the DataError that a bad one raises.
        """
        return (decode_five if self.views > 1 else decode_canvas)(data, self.image_size, where, self.framing)

    def predict(self, images: Iterable[ImageLike] | ImageLike) -> list[tuple[str, float]]:
        """Returns (class name, probability) of the most probable class of each image."""
        return list(self.predict_each(images))

    def predict_each(self, images: Iterable[ImageLike] | ImageLike) -> Iterator[tuple[str, float]]:
        """Yields the same as ``predict`` one by one, for any number of images, which go through in batches."""
        for ((name, probability),) in self._tops(images, 1):
            yield name, probability

    def predict_top(self, images: Iterable[ImageLike] | ImageLike, k: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the k most probable classes of each image with their probabilities, the most probable first.

        There are never more than there are classes.
        """
        return list(self._tops(images, k))

    def predict_proba(self, images: Iterable[ImageLike] | ImageLike) -> npt.NDArray[np.float32]:
        """Returns float32 [B, C] probabilities of all classes, in the order of ``classes``."""
        parts = [self(batch).numpy() for batch in self._batches(images)]
        return np.concatenate([np.empty((0, len(self.classes)), np.float32), *parts])

    @property
    def views(self) -> int:
        """Returns how many crops of an image are predicted: 5 or 1."""
        return NUM_CROPS if self.tta == FIVE_CROP else 1

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        """Returns the shape of one image for the network: (3, S, S), or (5, 3, S, S) with five crops."""
        one = (3, self.image_size, self.image_size)
        return one if self.views == 1 else (self.views, *one)

    @property
    def batch_size(self) -> int:
        """Returns the images of one forward pass: at most ``BATCH_BYTES`` as float32."""
        return max(1, min(MOST_PER_BATCH, BATCH_BYTES // (math.prod(self.canvas_shape) * 4)))

    def _tops(self, images: Iterable[ImageLike] | ImageLike, k: int) -> Iterator[list[tuple[str, float]]]:
        if k < 1:
            raise ConfigError(f"k={k}: expected at least 1 class for each image.")
        for batch in self._batches(images):
            values_Bk, classes_Bk = self(batch).topk(min(k, len(self.classes)))
            for values, classes in zip(values_Bk.tolist(), classes_Bk.tolist(), strict=True):
                yield [(self.classes[c], value) for c, value in zip(classes, values, strict=True)]

    def _batches(self, images: Iterable[ImageLike] | ImageLike) -> Iterator[Tensor]:
        for batch in batches(self._canvases(images), self.batch_size):
            yield torch.from_numpy(np.stack(batch))

    def _canvases(self, images: Iterable[ImageLike] | ImageLike) -> Iterator[Pixels]:
        listed = [images] if is_one(images) else images
        if not isinstance(listed, Iterable):
            raise DataError(f"Expected {IMAGES}, or several of them, got a {type(images).__name__}.")
        for number, image in enumerate(listed):
            if self.views > 1:
                yield five_crops(whole_of(image, number), self.image_size, self.framing)
            else:
                yield canvas_of(image, self.image_size, number, self.framing)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields the items in lists of ``size``, the last of which may be shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def find_device(device: str | torch.device) -> torch.device:
    """Returns the device of that name; 'auto' is the GPU where there is one.

    Raises ConfigError where there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(".")[0]
        raise ConfigError(f"device={str(device)!r}: {reason}. Known here: 'auto', 'cpu'{_gpus()}.") from error


def _gpus() -> str:
    return "".join(f", 'cuda:{n}'" for n in range(torch.cuda.device_count()))
