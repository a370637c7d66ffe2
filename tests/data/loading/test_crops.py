"""Crops of large originals: one box in every kind, pixels equal up to resampling, small canvases untouched.

The data task of the Ray loader is called here as Ray Data calls it; ``tests/runtime/test_ray_data.py`` goes through Ray.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.batch import Batch
from ltcore.data.augment.augment import Augment
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import AUGMENTS, reader_crops
from ltcore.data.config import DataConfig
from ltcore.data.images.boxes import scaled
from ltcore.data.images.decode import decode_canvas, decode_image
from ltcore.data.loading.cache_entry import NoRoomError
from ltcore.data.loading.crops import CropDraws
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import CachedLoader, Loader, ThreadedLoader
from ltcore.data.loading.plan import ShardHomes, parts, windows_from
from ltcore.data.loading.sampler import Rows
from ltcore.data.loading.samples import decode_rows
from ltcore.data.loading.window import read_part
from ltcore.data.shards.source import Sample
from ltcore.training.step import micro_batches
from tests.shards import same, write_dataset

CANVAS = 32
SIZES = [(60, 80), (80, 60), (64, 200), (32, 32), (40, 40), (20, 30), (48, 32), (90, 33)]
"""Heights and widths: photographs, a panorama, the canvas, less than the canvas."""
AUGMENT = AugmentConfig(view1="rrc_flip", view2="sim", crop_from="original")


def photograph(number: int, height: int, width: int) -> Image.Image:
    """Smooth: no color changes by more than 4 levels from one pixel to the next."""
    y, x = np.arange(height)[:, None], np.arange(width)
    waves = [np.sin((y * (c + 1) + x * (3 - c)) * 0.011 + number) for c in range(3)]
    return Image.fromarray((127.5 + 100 * np.stack(waves, 2)).astype(np.uint8))


def encoded(number: int, height: int, width: int) -> tuple[bytes, str]:
    """Every third a JPEG, of which every second lies on its side and says so."""
    out, image = io.BytesIO(), photograph(number, height, width)
    if number % 3:
        image.save(out, "PNG")
        return out.getvalue(), "png"
    exif = Image.Exif()
    if number % 2:
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue(), "jpg"


def write(uri: str, samples: Callable[[], Iterator[Sample]], image_size: int = CANVAS) -> str:
    write_dataset(
        uri,
        name="large",
        classes=["a", "b"],
        attributes=[],
        splits={"train": samples(), "val": list(samples())[:6]},
        image_size=image_size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
        shot_rule="rank",
        provenance={},
        shard_size=10,
    )
    return uri


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 images of many sizes."""

    def samples() -> Iterator[Sample]:
        for number in range(24):
            yield Sample(f"k{number}", *encoded(number, *SIZES[number % len(SIZES)]), number % 2)

    return write(str(tmp_path_factory.mktemp("large") / "shards"), samples)


def open_loader(uri: str, kind: str, *, augment: AugmentConfig | None = AUGMENT, **options: Any) -> Loader:
    """With ``cache_px`` so large that the cache keeps originals, unless it is given."""
    cfg = DataConfig(loader=kind, **{"cache_px": 4096, **options.pop("data", {})})
    return make_loader(cfg, uri, batch_size=8, seed=3, augment=augment, num_views=2, **options)


def original_sizes(loader: Loader) -> list[tuple[int, int]]:
    index = np.arange(loader.store.manifest.split("train").num_samples)
    return [decode_image(row, "x").shape[1:] for row in loader.store.read_rows("train", index)]  # type: ignore[misc]


def streamed(loader: ThreadedLoader, epoch: int, first: int, last: int) -> dict[str, np.ndarray]:
    """What data tasks give for a window of steps, in the order of its rows."""
    job = {
        "uri": loader.uri,
        "indexed": False,
        "split": "train",
        "image_size": loader.image_size,
        "framing": asdict(loader.prep.framing),
        "crops": [asdict(crop) for crop in loader.crops],
        "epochs": loader.epochs,
        "cache_bytes": 2**30,
        "max_bad_samples": loader.cfg.max_bad_samples,
        "seed": 3,
    }

    def batches(number: int, start: int) -> Iterator[Rows]:
        return loader.sampler(number).rank_batches(loader.rank, start)

    (window,) = windows_from(range(epoch, epoch + 1), last, first, last - first, batches)
    read = [
        read_part(table, job=job)
        for _, table in parts(window, 0, loader.store, "train", ShardHomes({"a": 1.0, "b": 2.0}))
    ]
    order = np.argsort(np.concatenate([part["place"] for part in read]))
    found = {name: np.concatenate([part[name] for part in read])[order] for name in read[0]}
    return found | {"index": window.rows.index_B, "copy": window.rows.copy_B}


def test_boxes_are_those_of_the_samples_in_every_tier(large: str) -> None:
    cached, threaded = open_loader(large, "cache"), open_loader(large, "threads")
    assert isinstance(cached, CachedLoader) and isinstance(threaded, ThreadedLoader)
    sizes, seen = original_sizes(cached), set()
    for loader in (cached, threaded):
        loader.copies_N = np.arange(24) % 3  # some never, some twice
    for epoch in range(2):
        tasks = streamed(threaded, epoch, 0, 3)
        for step, (one, two) in enumerate(zip(cached.train_batches(epoch), threaded.train_batches(epoch), strict=True)):
            rows = Rows(one.index_B.numpy(), one.copy_B.numpy())
            drawn = CropDraws(threaded.crops, 3, epoch, rows)
            expected = [drawn.boxes(b, sizes[index]) for b, index in enumerate(rows.index_B)]
            for found in (one, two):
                assert found.boxes_VB4 is not None
                assert found.boxes_VB4.transpose(0, 1).tolist() == [[list(box) for box in boxes] for boxes in expected]
            part = slice(step * 8, (step + 1) * 8)
            assert tasks["boxes"][part].tolist() == [[list(box) for box in boxes] for boxes in expected]
            assert tasks["index"][part].tolist() == rows.index_B.tolist()
            assert tasks["copy"][part].tolist() == rows.copy_B.tolist()
            seen.update(map(tuple, tasks["boxes"][part].reshape(-1, 4).tolist()))
    assert len(seen) > 80


def test_squares_grow_with_the_epoch_alike_in_every_tier(large: str) -> None:
    cfg = AugmentConfig(view1="square_crop", view2="sim", crop_from="original", crop_schedule="linear")
    cached, threaded = (open_loader(large, kind, augment=cfg, epochs=4) for kind in ("cache", "threads"))
    sizes = original_sizes(cached)
    smallest = []
    for epoch in (0, 2, 3):
        tasks = streamed(threaded, epoch, 0, 3)  # type: ignore[arg-type]
        shares = []
        for step, (one, two) in enumerate(zip(cached.train_batches(epoch), threaded.train_batches(epoch), strict=True)):
            assert same(one, two) and torch.equal(one.boxes_VB4, two.boxes_VB4)  # type: ignore[arg-type]
            part = slice(step * 8, (step + 1) * 8)
            np.testing.assert_array_equal(tasks["image"][part].swapaxes(0, 1), two.images_VBCHW)
            for index, (_, _, height, width) in zip(one.index_B.tolist(), one.boxes_VB4[0].tolist(), strict=True):  # type: ignore[index]
                assert height == width
                shares.append(height / min(sizes[index]))
        smallest.append(min(shares))
    assert smallest[0] < 0.5 < 0.75 < smallest[1] < smallest[2] == 1


def test_canvases_are_cropped_by_the_same_schedule(tiny_shards: str) -> None:
    """In the last epoch the square is the whole canvas."""
    cfg = AugmentConfig(view1="square_crop", crop_schedule="convex", crop_from="canvas")
    batch = next(make_loader(DataConfig(loader="threads"), tiny_shards, batch_size=8, seed=3).train_batches(0))
    augment = Augment(cfg, seed=3, mean=(0.5,) * 3, std=(0.25,) * 3, num_views=1, epochs=3)
    first, last = (augment(batch, epoch).images_VBCHW for epoch in (0, 2))
    assert torch.equal(last, augment.evaluate(batch).images_VBCHW) and not torch.equal(first, last)
    with pytest.raises(ValueError, match="crop_schedule must be one of constant, linear, convex, concave, got 'late'"):
        AugmentConfig(crop_schedule="late")


def test_the_training_split_is_evaluated_also_where_only_its_crops_have_room(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise NoRoomError("no room")

    monkeypatch.setattr("ltcore.data.loading.loader.open_canvases", full)
    cached, threaded = open_loader(large, "cache"), open_loader(large, "threads")
    for one, two in zip(cached.eval_batches("train", 7), threaded.eval_batches("train", 7), strict=True):
        assert same(one, two)


def test_pixels_are_equal_where_the_cache_keeps_originals_and_in_the_stream_always(large: str) -> None:
    cached, threaded = open_loader(large, "cache"), open_loader(large, "threads")
    tasks = streamed(threaded, 1, 0, 3)  # type: ignore[arg-type]
    for step, (one, two) in enumerate(zip(cached.train_batches(1), threaded.train_batches(1), strict=True)):
        assert one.images_VBCHW.shape == (2, 8, 3, CANVAS, CANVAS)
        assert same(one, two)
        np.testing.assert_array_equal(tasks["image"][step * 8 : (step + 1) * 8].swapaxes(0, 1), two.images_VBCHW)


def test_pixels_of_shrunk_copies_agree_up_to_resampling(large: str) -> None:
    """What may differ: each edge of the box lies up to half a pixel of the copy off, and pixels were interpolated once more.

    An original of short side 80 kept at 40 has pixels as large as two of the original, so half of one is one original
    pixel, which changes these pictures by at most 4 levels at an edge, less towards the opposite one; interpolating and
    rounding twice adds up to 2.
    """
    cached = open_loader(large, "cache", data={"cache_px": 40})
    threaded = open_loader(large, "threads")
    differences = []
    for one, two in zip(cached.train_batches(0), threaded.train_batches(0), strict=True):
        assert torch.equal(one.boxes_VB4, two.boxes_VB4)  # type: ignore[arg-type]
        differences.append((one.images_VBCHW.int() - two.images_VBCHW.int()).abs())
    difference = torch.stack(differences)
    assert difference.max() <= 6
    assert difference.float().mean() < 0.5
    assert difference.any(), "some originals are larger than 40"


def test_a_wrong_box_would_be_seen(large: str) -> None:
    """The tolerance above tells boxes apart: crops of other epochs differ by far more."""
    threaded = open_loader(large, "threads")
    first, other = (next(threaded.train_batches(epoch)).images_VBCHW.int() for epoch in (0, 1))
    assert (first - other).abs().float().mean() > 15


def test_evaluation_sees_whole_canvases_in_both_tiers(large: str) -> None:
    cached, threaded = open_loader(large, "cache"), open_loader(large, "threads")
    for split in ("train", "val"):
        for one, two in zip(cached.eval_batches(split, 5), threaded.eval_batches(split, 5), strict=True):
            assert same(one, two) and one.boxes_VB4 is None and len(one.images_VBCHW) == 1
            expected = decode_rows(cached.store, split, one.index_B.numpy(), CANVAS)
            np.testing.assert_array_equal(one.images_VBCHW[0].numpy(), expected)


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_ranks_share_the_global_batch_and_resume(large: str, kind: str) -> None:
    alone = list(open_loader(large, kind).train_batches(1))
    ranks = [open_loader(large, kind, rank=rank, world=2) for rank in range(2)]
    for whole, shares in zip(
        alone[1:], zip(*(loader.train_batches(1, 1) for loader in ranks), strict=True), strict=True
    ):
        assert torch.equal(whole.images_VBCHW, torch.cat([part.images_VBCHW for part in shares], dim=1))
        assert torch.equal(whole.boxes_VB4, torch.cat([part.boxes_VB4 for part in shares], dim=1))  # type: ignore[arg-type,misc]


def test_a_view_without_crop_is_the_canvas(large: str) -> None:
    augment = AugmentConfig(view1="crop_flip", view2="sim", crop_from="original")
    loader = open_loader(large, "threads", augment=augment)
    batch = next(loader.train_batches(0))
    expected = decode_rows(loader.store, "train", batch.index_B.numpy(), CANVAS)
    np.testing.assert_array_equal(batch.images_VBCHW[0].numpy(), expected)
    assert not np.array_equal(batch.images_VBCHW[1].numpy(), expected)


def test_who_crops(large: str) -> None:
    def views(image_size: int, num_views: int = 2, **fields: Any) -> list[tuple[str, float | None]]:
        return [(crop.view, crop.min_area) for crop in reader_crops(AugmentConfig(**fields), num_views, image_size)]

    both = [("view1", 0.08), ("view2", 0.2)]
    stacks = {"view1": "rrc_flip", "view2": "sim"}
    assert views(224, **stacks) == both and views(224, 1, **stacks) == both[:1]
    assert views(64, **stacks) == [] == views(224, crop_from="canvas", **stacks)
    assert views(32, crop_from="original", **stacks) == both
    assert views(224, view1="crop_flip") == [("view1", None), ("view2", 0.2)]
    assert views(224, 1, view1="crop_flip") == [], "nothing is cropped"
    assert open_loader(large, "threads", augment=None).crops == ()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^crop_from must be one of auto, canvas, original, got 'both'"):
        AugmentConfig(crop_from="both")


def test_auto_never_lets_the_disk_decide_about_pixels(large: str) -> None:
    chosen = open_loader(large, "auto")
    assert chosen.kind == "threads" and "cut out of the originals" in chosen.why
    assert open_loader(large, "auto", augment=AugmentConfig(view1="rrc_flip")).kind == "cache", "a canvas of 32 px"


def augment(**fields: Any) -> Augment:
    return Augment(AugmentConfig(**fields), seed=3, mean=(0.5,) * 3, std=(0.25,) * 3, num_views=2)


def test_small_canvases_are_cropped_on_the_device_bit_for_bit_as_ever(tiny_shards: str) -> None:
    """``auto`` changes nothing for them: no boxes, one canvas, and the crop is the first stage of the stack."""
    cfg = AugmentConfig(view1="rrc_flip", view2="sim")
    with_augment = make_loader(
        DataConfig(loader="threads"), tiny_shards, batch_size=8, seed=3, augment=cfg, num_views=2
    )
    without = make_loader(DataConfig(loader="threads"), tiny_shards, batch_size=8, seed=3)
    for one, two in zip(with_augment.train_batches(0), without.train_batches(0), strict=True):
        assert same(one, two) and one.boxes_VB4 is None and len(one.images_VBCHW) == 1


def test_augmentation_takes_cropped_views_as_they_are(large: str) -> None:
    batch = next(open_loader(large, "threads").train_batches(1))
    out = augment(view1="rrc_flip", view2="rrc_flip")(batch, 1)
    plain = batch.images_VBCHW.float() / 255
    for view in range(2):
        expected = (plain[view] - 0.5) / 0.25
        found = out.images_VBCHW[view]
        straight = (found - expected).abs().amax((1, 2, 3)) < 1e-5
        mirrored = (found - expected.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
        assert (straight | mirrored).all() and straight.any() and mirrored.any()


def test_flip_and_color_are_those_of_the_device_crop(large: str) -> None:
    """Cropping in the reader takes nothing away from the draws of the other stages: on images of one color, where every
    crop looks alike, both ways give the same views."""
    index = torch.arange(8)
    flat = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, CANVAS, CANVAS) * 30
    on_device = Batch(flat[None], index % 2, index, index * 0)
    by_reader = Batch(torch.stack([flat, flat]), index % 2, index, index * 0, boxes_VB4=torch.zeros(2, 8, 4).long())
    for name in (name for name, stack in AUGMENTS.items() if stack.min_area is not None):
        both = [augment(view1=name, view2=name)(batch, 0).images_VBCHW for batch in (on_device, by_reader)]
        assert torch.equal(*both)


def test_boxes_travel_with_a_batch(large: str) -> None:
    batch = next(open_loader(large, "threads").train_batches(0))
    assert batch.boxes_VB4 is not None
    pieces = micro_batches(batch.to("cpu"), 4)
    assert torch.equal(torch.cat([piece.boxes_VB4 for piece in pieces], 1), batch.boxes_VB4)  # type: ignore[misc]


def test_bad_samples_are_replaced_alike_in_every_tier(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        for number in range(24):
            data, ext = encoded(number, *SIZES[number % len(SIZES)])
            yield Sample(f"k{number}", b"no image" if number in (4, 7) else data, ext, number % 2)

    uri = write(str(tmp_path / "spoiled"), samples)
    cached, threaded = (open_loader(uri, kind, data={"max_bad_samples": 2}) for kind in ("cache", "threads"))
    tasks = streamed(threaded, 0, 0, 3)  # type: ignore[arg-type]
    for step, (one, two) in enumerate(zip(cached.train_batches(0), threaded.train_batches(0), strict=True)):
        assert same(one, two) and torch.equal(one.boxes_VB4, two.boxes_VB4)  # type: ignore[arg-type]
        np.testing.assert_array_equal(tasks["image"][step * 8 : (step + 1) * 8].swapaxes(0, 1), two.images_VBCHW)
    keys = cached.store.keys("train")
    assert sorted(keys[index] for index in cached.bad_samples) == ["k4", "k7"] and len(threaded.bad_samples) == 2


def test_a_crop_is_cut_from_the_original_not_from_the_canvas(tmp_path: Path) -> None:
    """Left and right of the centered square there is something to see: red and blue, of which a canvas shows nothing."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 80:, 2] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    uri = write(str(tmp_path / "wide"), lambda: (Sample(f"k{n}", out.getvalue(), "png", n % 2) for n in range(16)))
    assert not decode_canvas(out.getvalue(), CANVAS, "x").any()
    for kind in ("cache", "threads"):
        seen = torch.stack([b.images_VBCHW for b in open_loader(uri, kind, data={"cache_px": 20}).train_batches(0)])
        assert seen[:, :, :, 0].max() == seen[:, :, :, 2].max() == 255


def test_boxes_of_copies_are_those_of_originals_scaled() -> None:
    assert scaled((10, 20, 30, 40), (100, 100), (50, 50)) == (5, 10, 15, 20)


def test_a_data_task_that_need_not_resize_imports_no_torch() -> None:
    code = "import sys, ltcore.data.loading.window; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
