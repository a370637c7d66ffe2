"""The Ray stream gives the batches of the other tiers, bit for bit, from any step on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltcore.batch import Batch
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.sampler import drawn_copies
from ltcore.errors import DataError
from tests.data.small import write_spoiled
from tests.tars import pictures, write_tars

pytestmark = pytest.mark.ray


def stream(uri: str, **options: Any) -> Any:
    from ltcore.runtime.ray_data import RayLoader

    return RayLoader(DataConfig(uri=uri, loader="ray", prefetch_steps=3), uri, epochs=4, **options)


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images_VBCHW, b.images_VBCHW)
    assert torch.equal(a.labels_B, b.labels_B)
    assert torch.equal(a.index_B, b.index_B)
    assert torch.equal(a.copy_B, b.copy_B)


@pytest.mark.parametrize("rank", [0, 1])
def test_three_tiers_give_the_same_batches(one_ray: None, color_shards: str, rank: int) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "rank": rank, "world": 2}
    loaders = [stream(color_shards, **options)]
    loaders += [
        make_loader(DataConfig(uri=color_shards, loader=t), color_shards, **options) for t in ("cache", "threads")
    ]
    assert {loader.kind for loader in loaders} == {"ray", "cache", "threads"}
    num_samples = loaders[0].store.manifest.split("train").num_samples
    for epoch in range(4):
        if epoch == 3:  # the last one has an order of its own
            for loader in loaders:
                loader.copies_N, loader.order_L = None, np.arange(num_samples)[::-1] // 2
        elif epoch:  # the second and third epoch repeat some samples, each others
            copies_N = drawn_copies(np.arange(num_samples) % 5, 0, epoch)
            assert copies_N.max() > 1
            for loader in loaders:
                loader.copies_N = copies_N
        batches = [list(loader.train_batches(epoch)) for loader in loaders]
        assert [len(b) for b in batches] == [8, 8, 8]
        for streamed, cached, threaded in zip(*batches, strict=True):
            assert_same(streamed, cached)
            assert_same(streamed, threaded)
            assert len(streamed) == 4
    for loader in loaders:
        loader.close()


def test_pairs_are_those_of_the_other_tiers(one_ray: None, color_shards: str) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "rank": 1, "world": 2, "paired": True}
    streamed = stream(color_shards, **options)
    threaded = make_loader(DataConfig(loader="threads"), color_shards, **options)
    for epoch, start in ((0, 6), (1, 0)):
        batches = zip(streamed.train_batches(epoch, start), threaded.train_batches(epoch, start), strict=True)
        sizes = []
        for a, b in batches:
            assert_same(a, b)
            sizes.append(len(a))
        assert sizes == [8] * (8 - start)
    streamed.close()


def test_tars_of_others_give_the_batches_of_the_other_tiers(one_ray: None, tmp_path: Path) -> None:
    write_tars(tmp_path / "train-%d.tar", pictures(24), maxcount=9)
    uri = prepare(DataConfig(uri=str(tmp_path)))
    streamed = stream(uri, batch_size=4, seed=0)
    threaded = make_loader(DataConfig(uri=uri, loader="threads"), uri, batch_size=4, seed=0)
    pairs = zip(streamed.train_batches(0), threaded.train_batches(0), strict=True)
    assert [assert_same(*pair) for pair in pairs] == [None] * 4
    streamed.close()


def test_crops_of_large_originals_are_those_of_the_other_tiers(one_ray: None, color_shards: str) -> None:
    augment = AugmentConfig(view1="rrc_flip", view2="sim", crop_from="original")
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "augment": augment, "num_views": 2}
    loader = stream(color_shards, **options)
    others = [
        make_loader(DataConfig(loader=kind, cache_px=4096), color_shards, **options) for kind in ("cache", "threads")
    ]
    for epoch, start in ((0, 0), (1, 5)):
        batches = [list(f.train_batches(epoch, start)) for f in (loader, *others)]
        for streamed, *rest in zip(*batches, strict=True):
            assert streamed.images_VBCHW.shape[:2] == (2, 8)
            for other in rest:
                assert_same(streamed, other)
                assert torch.equal(streamed.boxes_VB4, other.boxes_VB4)


@pytest.mark.parametrize("crop_from", ["canvas", "original"])
def test_bad_samples_are_counted_over_the_whole_run(
    one_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, crop_from: str
) -> None:
    """By whoever gets them: each task of a stream sees a window of steps alone."""
    from ltcore.runtime.ray_data import RayLoader

    uri = str(tmp_path / "spoiled")
    write_spoiled(uri)
    augment = AugmentConfig(view1="rrc_flip", crop_from=crop_from)

    def loader(kind: str, limit: int) -> Any:
        cfg = DataConfig(uri=uri, loader=kind, max_bad_samples=limit, prefetch_steps=1)
        options: dict[str, Any] = {"batch_size": 4, "seed": 0, "augment": augment}
        return RayLoader(cfg, uri, epochs=2, **options) if kind == "ray" else make_loader(cfg, uri, **options)

    streamed, threaded = loader("ray", 2), loader("threads", 2)
    for epoch in range(2):
        for a, b in zip(streamed.train_batches(epoch), threaded.train_batches(epoch), strict=True):
            assert_same(a, b)
    assert streamed.bad_samples == threaded.bad_samples and len(streamed.bad_samples) == 2
    told = [record.getMessage() for record in caplog.records if "max_bad_samples" in record.getMessage()]
    assert len(told) == 4 and len(set(told)) == 2  # both feeds, each once
    with pytest.raises(DataError, match=r"'k[02]'.* It is number 2; data.max_bad_samples=1"):
        list(loader("ray", 1).train_batches(0))


def test_it_starts_in_the_middle_of_an_epoch_and_goes_on(one_ray: None, color_shards: str) -> None:
    options: dict[str, Any] = {"batch_size": 8, "seed": 3}
    reference = make_loader(DataConfig(uri=color_shards, loader="cache"), color_shards, **options)
    loader = stream(color_shards, **options)
    for epoch, start in ((1, 5), (2, 0), (2, 3)):
        if start == 3:  # resumed where samples are repeated
            loader.copies_N = reference.copies_N = drawn_copies(
                np.arange(len(reference.store.labels("train"))) % 3, 0, epoch
            )
        expected = list(reference.train_batches(epoch, start))
        got = list(loader.train_batches(epoch, start))
        assert len(got) == len(expected) == 8 - start
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b)


def test_evaluation_sees_every_row_once(one_ray: None, color_shards: str) -> None:
    seen = [
        int(index)
        for rank in (0, 1)
        for batch in stream(color_shards, batch_size=8, seed=0, rank=rank, world=2).eval_batches("val", 5)
        for index in batch.index_B
    ]
    assert sorted(seen) == list(range(24))
