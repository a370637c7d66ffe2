"""Canvases that stay on the device: the same batches to the bit, whatever is done with them; no images cross in a step.

No GPU is needed: results are compared on the CPU, and the device ``meta``, which holds no numbers, shows that a step reads
nothing back from the device, and how many bytes go to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ltcore.data.augment.augment import Augment
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import AUGMENTS
from ltcore.data.config import DataConfig
from ltcore.data.loading import resident
from ltcore.data.loading.cache_entry import ARRAY, NoRoomError
from ltcore.data.loading.canvas_cache import canvas_bytes, entry_path
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import CachedLoader, Loader
from ltcore.data.loading.resident import ResidentLoader, is_resident, resident_bytes, resident_splits
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CapacityError, ConfigError
from tests.shards import same

META = torch.device("meta")
TINY_BYTES = (46 + 12) * 3 * 16 * 16
"""Canvases of train and val of the tiny data set."""


def open_loader(uri: str, mode: str = "on", device: str = "cpu", **options: Any) -> Loader:
    keys = {key: options.pop(key) for key in list(options) if key in DataConfig.__dataclass_fields__}
    cfg = DataConfig(**{"loader": "cache", **keys}, resident=mode)
    return make_loader(cfg, uri, **{"batch_size": 8, "seed": 0, **options}, device=torch.device(device))


@pytest.mark.parametrize("paired", [False, True])
def test_batches_are_those_of_the_host(tiny_shards: str, paired: bool) -> None:
    host, here = (open_loader(tiny_shards, mode, paired=paired) for mode in ("off", "on"))
    assert type(host) is CachedLoader and isinstance(here, ResidentLoader)
    for epoch in range(2):
        for first, second in zip(host.train_batches(epoch), here.train_batches(epoch), strict=True):
            assert same(first, second) and first.images_VBCHW[0].stride() == second.images_VBCHW[0].stride()
    for split in ("train", "val", "test"):
        for first, second in zip(host.eval_batches(split, 5), here.eval_batches(split, 5), strict=True):
            assert same(first, second)
    assert here.kind == "cache" and "canvases of train and val stay on cpu" in here.why


def test_ranks_share_batches_and_resume_within_an_epoch(tiny_shards: str) -> None:
    whole = list(open_loader(tiny_shards, "off").train_batches(1))[2:]
    ranks = [open_loader(tiny_shards, rank=rank, world=2).train_batches(1, 2) for rank in range(2)]
    for expected, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert torch.equal(expected.images_VBCHW, torch.cat([part.images_VBCHW for part in parts], 1))


def test_copies_and_orders_are_followed(tiny_shards: str) -> None:
    loaders = [open_loader(tiny_shards, mode) for mode in ("off", "on")]
    plans: list[dict[str, Any]] = [
        {"copies_N": np.arange(46) % 3, "order_L": None},
        {"copies_N": None, "order_L": np.arange(40)[::-1].copy()},
    ]
    for plan in plans:
        for loader in loaders:
            loader.copies_N, loader.order_L = plan["copies_N"], plan["order_L"]
        for first, second in zip(*(loader.train_batches(0) for loader in loaders), strict=True):
            assert same(first, second)


MIXES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed": {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "remix_kappa": 2.0},
}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("mix", MIXES)
def test_views_are_those_of_the_host(tiny_shards: str, views: int, mix: str) -> None:
    made = []
    for mode in ("off", "on"):
        augment = augmentation(views, view1="crop_flip", **MIXES[mix])
        raws = open_loader(tiny_shards, mode, num_views=views).train_batches(3)
        made.append([augment(raw.to("cpu"), 3, raw) for raw in raws])
    for first, second in zip(*made, strict=True):
        assert len(first.images_VBCHW) == views
        assert same(first, second)
        assert (first.mix is None) == (mix == "plain")
        if first.mix is not None and second.mix is not None:
            assert torch.equal(first.mix.lam_B, second.mix.lam_B) and torch.equal(first.mix.index_B, second.mix.index_B)


def augmentation(views: int = 1, **cfg: Any) -> Augment:
    half = [0.5] * 3
    counts_C = torch.tensor([23, 12, 7, 4])
    return Augment(AugmentConfig(**cfg), seed=5, mean=half, std=half, num_views=views, counts_C=counts_C)


class Crossing(TorchDispatchMode):
    """Counts the bytes that are copied from the CPU to ``meta``; anything the other way raises of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            devices = [t.device.type for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if isinstance(result, Tensor) and result.is_meta and "cpu" in devices:
                self.bytes += result.numel() * result.element_size()
        return result


@pytest.mark.parametrize("stack", sorted(AUGMENTS))
def test_a_step_reads_nothing_back_from_the_device(tiny_shards: str, stack: str) -> None:
    loader = open_loader(tiny_shards, device="meta", num_views=2)
    raw = next(loader.train_batches(0))
    assert raw.images_VBCHW.device == META and raw.labels_B.device == raw.index_B.device == torch.device("cpu")
    batch = augmentation(2, view1=stack)(raw.to(META), 0, raw)
    assert batch.images_VBCHW.device == META and batch.images_VBCHW.shape == (2, 8, 3, 16, 16)


def test_mixing_reads_nothing_back_either(tiny_shards: str) -> None:
    raw = next(open_loader(tiny_shards, device="meta").train_batches(0))
    batch = augmentation(1, **MIXES["mixed"])(raw.to(META), 0, raw)
    assert batch.mix is not None and batch.mix.lam_B.device == batch.images_VBCHW.device == META


def test_what_crosses_in_a_step_does_not_grow_with_images(tiny_shards: str) -> None:
    def crossing(mode: str, side: int) -> int:
        augment = augmentation(1, view1="crop_flip")
        batches = open_loader(tiny_shards, mode, device="meta", image_size=side).train_batches(0)
        raw = next(batches)
        augment(raw.to(META), 0, raw)  # the first also brings mean and standard deviation
        with Crossing() as crossed:
            raw = next(batches)
            augment(raw.to(META), 0, raw)
        return crossed.bytes

    drawn = 3 * 4 * 8  # two numbers of the crop and one of the flip
    numbers = 4 * 8 * 8  # the rows once for the gathering, then in the batch, with labels and copies
    assert crossing("on", 16) == crossing("on", 32) == numbers + drawn
    assert crossing("off", 32) == 8 * 3 * 32 * 32 + numbers - 8 * 8 + drawn


def test_a_damaged_row_is_decoded_anew_on_its_way(tiny_shards: str, caplog: pytest.LogCaptureFixture) -> None:
    host = open_loader(tiny_shards, "off")
    expected = next(host.eval_batches("train", 46))
    host.close()
    with (entry_path(host.store, "train", 16) / ARRAY).open("r+b") as file:
        file.seek(7 * canvas_bytes(1, 16) + 5)
        file.write(bytes([int(expected.images_VBCHW[0, 7].flatten()[5]) ^ 1]))
    with caplog.at_level(logging.WARNING, "ltcore.data"):
        here = open_loader(tiny_shards)
    assert "row 7 is damaged" in caplog.text
    assert same(expected, next(here.eval_batches("train", 46)))


def test_canvases_are_copied_in_pieces(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "CHUNK_BYTES", 7 * canvas_bytes(1, 16) + 1)
    host, here = open_loader(tiny_shards, "off"), open_loader(tiny_shards)
    assert same(next(host.eval_batches("train", 46)), next(here.eval_batches("train", 46)))


def test_a_gpu_holds_what_takes_a_quarter_of_its_free_memory(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, gpu, cfg = read_manifest(tiny_shards), torch.device("cuda:0"), DataConfig()
    assert resident_bytes(cfg, manifest) == TINY_BYTES and resident_splits(cfg, manifest) == ("train", "val")
    for free, stays in ((4 * TINY_BYTES, True), (4 * TINY_BYTES - 1, False)):
        monkeypatch.setattr(resident, "free_bytes", lambda device, free=free: free)
        held, why = is_resident(cfg, manifest, gpu, cached=True, cropped=False)
        assert held == stays and ("do not stay on cuda:0" in why) != stays and "a quarter of the" in why
    monkeypatch.setattr(resident, "free_bytes", lambda device: 4 * TINY_BYTES)
    for mode, cached, cropped in (("off", True, False), ("auto", False, False), ("auto", True, True)):
        assert is_resident(DataConfig(resident=mode), manifest, gpu, cached=cached, cropped=cropped) == (False, "")
    assert is_resident(cfg, manifest, torch.device("cpu"), cached=True, cropped=False) == (False, "")
    assert type(open_loader(tiny_shards, "auto")) is CachedLoader
    assert open_loader(tiny_shards, "auto").why == "asked for"


def test_free_memory_of_a_gpu_is_what_this_process_may_still_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    for part, free in ((1.0, 130), (0.125, 105), (0.015625, 0)):
        # torch takes no device without a number here
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda number, part=part: {3: part}[number])
        assert resident.free_bytes(torch.device("cuda:3")) == resident.free_bytes(torch.device("cuda")) == free
    assert resident.free_bytes(torch.device("cpu")) > 2**20


def test_what_cannot_be_done_is_refused_with_the_reason(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loader in ("threads", "ray"):
        with pytest.raises(ValueError, match=f"resident=on does not go with data.loader={loader}.*data.resident=off"):
            DataConfig(loader=loader, resident="on")
    with pytest.raises(ValueError, match="resident must be one of auto, on, off, got 'yes'"):
        DataConfig(resident="yes")
    original = AugmentConfig(view1="rrc_flip", crop_from="original")
    with pytest.raises(ConfigError, match=r"crops are cut out of the originals.*augment.crop_from=canvas"):
        open_loader(tiny_shards, augment=original)
    assert type(open_loader(tiny_shards, "auto", augment=original)) is CachedLoader
    with pytest.raises(CapacityError, match=r"data.loader=auto finds no room.*Raise data.cache_bytes"):
        open_loader(tiny_shards, loader="auto", cache_bytes=1000)
    with pytest.raises(NoRoomError):
        open_loader(tiny_shards, cache_bytes=46 * canvas_bytes(1, 16) + 1000)  # of train, not of val
    partly = ResidentLoader(
        DataConfig(cache_bytes=46 * canvas_bytes(1, 16) + 1000), tiny_shards, device=META, batch_size=8, seed=0
    )
    assert next(partly.train_batches(0)).images_VBCHW.device == META
    assert next(partly.eval_batches("val", 4)).images_VBCHW.device == torch.device("cpu")
    monkeypatch.setattr(resident, "free_bytes", lambda device: 3 * 2**20)
    big = "needs 3.1 MiB on cpu for the canvases of train and val, and 3.0 MiB are free there: set data.resident=auto or off"
    with pytest.raises(CapacityError, match=f"data.resident=on {big}"):
        open_loader(tiny_shards, image_size=137)


def test_memory_that_others_took_meanwhile_is_an_error_only_where_it_was_asked_for(
    tiny_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy: Callable[..., Tensor] = resident.on_device

    def full(canvases: Any, device: torch.device) -> Tensor:
        if len(canvases.canvases_N3SS) == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copy(canvases, device)

    monkeypatch.setattr(resident, "on_device", full)
    with pytest.raises(CapacityError, match=r"data\.resident=on needs"):
        open_loader(tiny_shards)
    with caplog.at_level(logging.WARNING, "ltcore.data"):
        loader = ResidentLoader(DataConfig(), tiny_shards, device=META, batch_size=8, seed=0)
    assert "split val is gathered on the host: meta has no room now" in caplog.text
    assert loader.why.endswith("meta had no room for val in the end")
    assert next(loader.eval_batches("val", 4)).images_VBCHW.device == torch.device("cpu")
    assert next(loader.train_batches(0)).images_VBCHW.device == META
