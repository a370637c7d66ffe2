"""Peers of the benchmarks: a WebDataset DataLoader, and a training loop in plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ltcore import storage
from ltcore.data.images.decode import decode_canvas
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.source import EXTENSIONS

SHUFFLE_ROWS = 1000
"""Size of each DataLoader worker's shuffle buffer: one shard's rows, the usual setting."""


def webdataset_loader(uri: str, *, batch_size: int, image_size: int | None, workers: int, persistent: bool) -> Any:
    """Returns a DataLoader over the same tars, with shuffled shards and rows and our image decoder.

    ``image_size`` None leaves images encoded. Our loaders give exact epochs, order and resume; this one gives none of
    them.
    """
    import webdataset

    urls = [str(storage.local_path(storage.join(uri, s.path))) for s in read_manifest(uri).split("train").shards]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(SHUFFLE_ROWS)
        .map(functools.partial(_sample, image_size=image_size))
        .batched(batch_size, collation_fn=_collate)
    )
    return torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=persistent and workers > 0
    )


def _sample(sample: dict[str, Any], image_size: int | None) -> tuple[Any, int]:
    image = next(sample[ext] for ext in EXTENSIONS if ext in sample)
    return (image if image_size is None else decode_canvas(image, image_size, sample["__key__"])), int(sample["cls"])


def _collate(samples: Sequence[tuple[Any, int]]) -> tuple[Any, Tensor]:
    images, labels = zip(*samples, strict=True)
    stacked = torch.from_numpy(np.stack(images)) if isinstance(images[0], np.ndarray) else list(images)
    return stacked, torch.tensor(labels)


def loss_scaler(place: torch.device, autocast: torch.dtype | None) -> torch.amp.GradScaler:
    """Returns the scaler of a loss, which does nothing but in float16."""
    return torch.amp.GradScaler(place.type, enabled=autocast is torch.float16)


class BareLoop:
    """Crop, flip, network, cross-entropy and SGD on decoded images on the device; logs nothing.

    Its augmentation is that of 'crop_flip', with torch's own generator instead of keyed numbers.
    """

    def __init__(
        self,
        net: nn.Module,
        images_N3SS: Tensor,
        labels_N: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        autocast: torch.dtype | None,
    ) -> None:
        self.net, self.images_N3SS, self.labels_N = net.train(), images_N3SS, labels_N
        self.batch_size, self.autocast = batch_size, autocast
        self.place = images_N3SS.device
        self.mean, self.std = (torch.tensor(v, device=self.place)[:, None, None] * 255 for v in (mean, std))
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
        self.scaler = loss_scaler(self.place, autocast)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields augmented images and labels of one epoch of whole batches."""
        order = torch.randperm(len(self.labels_N), device=self.place)
        for rows in order[: len(order) // self.batch_size * self.batch_size].split(self.batch_size):
            yield self.augment(self.images_N3SS[rows]), self.labels_N[rows]

    def augment(self, images_B3SS: Tensor) -> Tensor:
        """Crops with padding, flips and normalizes a batch of images."""
        size, side = len(images_B3SS), images_B3SS.shape[-1]
        pad = side // 8
        windows = F.pad(images_B3SS, (pad,) * 4).unfold(2, side, 1).unfold(3, side, 1)
        top_B, left_B = torch.randint(2 * pad + 1, (2, size), device=self.place)
        cropped = windows[torch.arange(size, device=self.place), :, top_B, left_B]
        mirrored_B = torch.rand(size, device=self.place) < 0.5
        flipped = torch.where(mirrored_B[:, None, None, None], cropped.flip(-1), cropped)
        return (flipped - self.mean) / self.std

    def step(self, images: Tensor, labels_B: Tensor) -> Tensor:
        """Trains on one batch; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.place.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits_BC = self.net(images).logits_BC
        loss = F.cross_entropy(logits_BC, labels_B)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def epoch(self) -> int:
        """Trains one epoch; returns the number of images."""
        total, seen = torch.zeros((), device=self.place), 0
        for images, labels_B in self.batches():
            total += self.step(images, labels_B)
            seen += len(labels_B)
        float(total)  # every loop prints its loss, which waits for the device
        return seen


def timm_step(
    name: str, num_classes: int, images: Tensor, labels_B: Tensor, autocast: torch.dtype | None
) -> Callable[[], object]:
    """Returns a training step of timm: its network, its optimizer, and what its training script does with a batch.

    ``images`` are augmented and on the device. The script's loss scaler acts in fp16 alone. Its switches of cuDNN are left as
    those of the step that it is compared with, which takes no algorithm by its time: another start might take another one.
    """
    import timm
    from timm.optim import create_optimizer_v2

    place = images.device
    net: Any = timm.create_model(name, num_classes=num_classes)
    net = net.to(device=place, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(net.train(), opt="sgd", lr=0.1, weight_decay=2e-4, momentum=0.9)
    loss_fn, scaler = nn.CrossEntropyLoss().to(place), loss_scaler(place, autocast)

    def step() -> Tensor:
        with torch.autocast(place.type, dtype=autocast, enabled=autocast is not None):
            loss = loss_fn(net(images), labels_B)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step
