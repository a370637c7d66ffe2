"""A framing gives the same batches in every tier, has cache entries of its own, and leaves random crops alone."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltcore.data.augment.config import AugmentConfig
from ltcore.data.config import DataConfig
from ltcore.data.images.decode import decode_image
from ltcore.data.images.framed import framed
from ltcore.data.loading.canvas_cache import entry_path
from ltcore.data.loading.factory import cache_fits, make_loader
from ltcore.data.loading.loader import Loader
from ltcore.data.loading.original_cache import images_path
from ltcore.data.loading.plan import ShardHomes, parts, windows_from
from ltcore.data.loading.window import read_part
from ltcore.data.shards.source import Sample
from tests.shards import same, write_dataset

KEYS: dict[str, Any] = {
    "image_size": 24,
    "mean": (0.1, 0.2, 0.3),
    "interpolation": "bicubic",
    "crop_fraction": 0.8,
    "crop_mode": "border",
    "cache_px": 4096,
}


def jpeg(number: int, height: int, width: int) -> bytes:
    y, x = np.arange(height)[:, None], np.arange(width)
    waves = [np.sin((y * (c + 1) + x * (3 - c)) * 0.05 + number) for c in range(3)]
    out = io.BytesIO()
    Image.fromarray((127.5 + 100 * np.stack(waves, 2)).astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [Sample(f"k{n}", jpeg(n, 40 + 3 * n, 60 - n), "jpg", n % 2) for n in range(16)]
    uri = str(tmp_path_factory.mktemp("framings") / "shards")
    write_dataset(uri, classes=("a", "b"), splits={"train": rows, "val": rows[:5]}, image_size=24)
    return uri


def loader_of(uri: str, kind: str, augment: AugmentConfig | None = None, **changes: Any) -> Loader:
    cfg = DataConfig(uri=uri, loader=kind, lanes=1, **{**KEYS, **changes})
    return make_loader(cfg, uri, batch_size=8, seed=3, augment=augment, num_views=2)


def streamed(loader: Loader) -> np.ndarray:
    """The images of the first epoch as data tasks give them, in the order of their rows."""
    job = {
        "uri": loader.uri,
        "indexed": False,
        "split": "train",
        "image_size": loader.image_size,
        "framing": asdict(loader.prep.framing),
        "crops": [asdict(crop) for crop in loader.crops],
        "epochs": loader.epochs,
        "cache_bytes": 2**30,
        "max_bad_samples": 0,
        "seed": 3,
    }
    steps = loader.num_batches
    (window,) = windows_from(range(1), steps, 0, steps, lambda n, start: loader.sampler(n).rank_batches(0, start))
    read = [read_part(t, job=job) for _, t in parts(window, 0, loader.store, "train", ShardHomes({"a": 1.0}))]
    order = np.argsort(np.concatenate([part["place"] for part in read]))
    return np.concatenate([part["image"] for part in read])[order]


def test_canvases_are_framed_in_every_tier(photos: str) -> None:
    cached, threaded = loader_of(photos, "cache"), loader_of(photos, "threads")
    for split in ("train", "val"):
        for one, two in zip(cached.eval_batches(split, 3), threaded.eval_batches(split, 3), strict=True):
            assert same(one, two)
            for canvas, row in zip(
                one.images_VBCHW[0], cached.store.read_rows(split, one.index_B.numpy()), strict=True
            ):
                np.testing.assert_array_equal(canvas, framed(decode_image(row, "x"), 24, cached.prep.framing))
    assert cached.prep.framing.fill == (26, 51, 76), "the mean color"
    trained = np.concatenate([batch.images_VBCHW[0].numpy() for batch in threaded.train_batches(0)])
    np.testing.assert_array_equal(streamed(threaded), trained)


def test_framings_do_not_share_entries_of_the_cache(photos: str) -> None:
    loaders = [loader_of(photos, "cache", crop_mode=mode) for mode in ("border", "center", "squash")]
    images = [next(loader.eval_batches("val", 5)).images_VBCHW.numpy() for loader in loaders]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])
    store = loaders[0].store
    paths = {entry_path(store, "val", 24, loader.prep.framing) for loader in loaders}
    assert len(paths) == 3 and all(path.is_dir() for path in paths) and not entry_path(store, "val", 24).is_dir()
    assert cache_fits(DataConfig(uri=photos, **KEYS), photos, None, 1)[0]


RRC = AugmentConfig(view1="crop_flip", view2="rrc_flip", crop_from="original")


def test_random_crops_take_the_interpolation_and_nothing_else(photos: str) -> None:
    def second_views(**changes: Any) -> np.ndarray:
        return next(loader_of(photos, "threads", RRC, **changes).train_batches(0)).images_VBCHW[1].numpy()

    framed_so = second_views()
    np.testing.assert_array_equal(framed_so, second_views(crop_fraction=None, crop_mode="squash"))
    bilinear = second_views(interpolation="bilinear")
    assert not np.array_equal(framed_so, bilinear)
    np.testing.assert_array_equal(bilinear, second_views(interpolation=None, crop_fraction=None, crop_mode=None))


def test_a_view_without_random_crop_is_the_framed_canvas_in_every_tier(photos: str) -> None:
    cached, threaded = loader_of(photos, "cache", RRC), loader_of(photos, "threads", RRC)
    for one, two in zip(cached.train_batches(0), threaded.train_batches(0), strict=True):
        assert same(one, two)
        for canvas, row in zip(one.images_VBCHW[0], cached.store.read_rows("train", one.index_B.numpy()), strict=True):
            np.testing.assert_array_equal(canvas, framed(decode_image(row, "x"), 24, cached.prep.framing))
    views = np.concatenate([batch.images_VBCHW.numpy().swapaxes(0, 1) for batch in threaded.train_batches(0)])
    np.testing.assert_array_equal(streamed(threaded), views)
    assert images_path(cached.store, "train", 4096, "bicubic").is_dir()
    bilinear, without = (images_path(cached.store, "train", 4096, name) for name in ("bilinear", None))
    assert bilinear == without != images_path(cached.store, "train", 4096, "bicubic")
