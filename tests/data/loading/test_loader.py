from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltcore import storage
from ltcore.data.config import DataConfig
from ltcore.data.loading.cache_entry import NoRoomError
from ltcore.data.loading.factory import make_loader
from ltcore.data.loading.loader import CachedLoader, Loader, ThreadedLoader
from ltcore.data.loading.prefetch import prefetch
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.source import Sample
from ltcore.errors import ConfigError, DataError
from tests.conftest import png
from tests.shards import same, write_dataset


def open_loader(uri: str, kind: str, rank: int = 0, world: int = 1, **config: Any) -> Loader:
    return make_loader(DataConfig(loader=kind, **config), uri, batch_size=8, seed=0, rank=rank, world=world)


@pytest.fixture
def spoiled(tmp_path: Path) -> Callable[[int, str], str]:
    """Makes a data set of two classes of eight images of which ``num_bad`` of class 0 in ``split`` are no images."""

    def make(num_bad: int, split: str = "train") -> str:
        rng = np.random.default_rng(0)

        def samples(name: str) -> Iterator[Sample]:
            for n in range(16):
                bad = name == split and n < 2 * num_bad and n % 2 == 0
                yield Sample(f"k{n}", b"no image" if bad else png(rng), "png", n % 2)

        uri = str(tmp_path / f"spoiled{num_bad}{split}")
        write_dataset(
            uri,
            name="spoiled",
            classes=["a", "b"],
            attributes=[],
            splits={name: list(samples(name)) for name in ("train", "val")},
            image_size=16,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            seed=0,
            shot_rule="rank",
            provenance={},
        )
        return uri

    return make


def test_both_loaders_give_the_same_batches(tiny_shards: str) -> None:
    cached, threaded = open_loader(tiny_shards, "cache"), open_loader(tiny_shards, "threads")
    assert isinstance(cached, CachedLoader)
    assert isinstance(threaded, ThreadedLoader)
    assert cached.num_batches == threaded.num_batches == 5
    for epoch in range(2):
        for first, second in zip(cached.train_batches(epoch), threaded.train_batches(epoch), strict=True):
            assert same(first, second)
    for first, second in zip(cached.eval_batches("test", 3), threaded.eval_batches("test", 3), strict=True):
        assert same(first, second)


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_a_batch_is_what_its_index_says(tiny_shards: str, kind: str) -> None:
    loader = open_loader(tiny_shards, kind)
    batches = list(loader.train_batches(epoch=3))
    assert len(batches) == 5
    for batch in batches:
        assert batch.images_VBCHW.shape == (1, 8, 3, 16, 16)
        assert batch.images_VBCHW.dtype == torch.uint8
        index_B = batch.index_B.numpy()
        np.testing.assert_array_equal(batch.images_VBCHW[0].numpy(), decode_rows(loader.store, "train", index_B, 16))
        np.testing.assert_array_equal(batch.labels_B.numpy(), loader.store.labels("train")[index_B])
        assert batch.copy_B.tolist() == [0] * 8


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_ranks_share_the_global_batch_and_resume(tiny_shards: str, kind: str) -> None:
    alone = list(open_loader(tiny_shards, kind).train_batches(1))
    ranks = [open_loader(tiny_shards, kind, rank, 2) for rank in range(2)]
    for whole, parts in zip(
        alone[2:], zip(*(loader.train_batches(1, 2) for loader in ranks), strict=True), strict=True
    ):
        assert torch.equal(whole.index_B, torch.cat([part.index_B for part in parts]))
        assert torch.equal(whole.images_VBCHW, torch.cat([part.images_VBCHW for part in parts], dim=1))


@pytest.mark.parametrize("kind", ["cache", "threads"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_row_once(tiny_shards: str, kind: str, world: int) -> None:
    loaders = [open_loader(tiny_shards, kind, rank, world) for rank in range(world)]
    batches = [batch for loader in loaders for batch in loader.eval_batches("test", 4)]
    assert torch.cat([batch.index_B for batch in batches]).tolist() == list(range(14))
    assert torch.cat([batch.labels_B for batch in batches]).tolist() == loaders[0].store.labels("test").tolist()


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_copies_repeat_samples(tiny_shards: str, kind: str) -> None:
    loader = open_loader(tiny_shards, kind)
    loader.copies_N = np.where(loader.store.labels("train") == 3, 6, 0)
    assert loader.num_batches == 3  # four samples of class 3
    batches = list(loader.train_batches(0))
    seen = [pair for b in batches for pair in zip(b.index_B.tolist(), b.copy_B.tolist(), strict=True)]
    expected = [(n, copy) for n in np.flatnonzero(loader.store.labels("train") == 3).tolist() for copy in range(6)]
    assert sorted(seen) == expected


def test_image_size_of_the_configuration(tiny_shards: str) -> None:
    assert next(open_loader(tiny_shards, "cache", image_size=8).train_batches(0)).images_VBCHW.shape[-1] == 8


def test_the_loader_is_chosen_by_size_and_explained(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = open_loader(tiny_shards, "auto")
    assert chosen.kind == "cache"
    assert "fit data.cache_bytes of 20.00 GiB" in chosen.why
    chosen = open_loader(tiny_shards, "auto", cache_bytes=1000)
    assert chosen.kind == "threads"
    assert "exceed data.cache_bytes" in chosen.why
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1000)
    assert "free disk" in open_loader(tiny_shards, "auto").why
    chosen = open_loader(tiny_shards, "ray")
    assert chosen.kind == "threads"
    assert "ray" in chosen.why


def test_without_room_in_the_cache_threads_read_what_does_not_fit(
    tiny_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other canvases hold the room: a run whose loader was not asked for goes on, evaluation in any case."""
    other = open_loader(tiny_shards, "cache", image_size=15)
    held = 46 * 3 * 15**2
    chosen = open_loader(tiny_shards, "auto", cache_bytes=held + (46 + 6) * 3 * 16**2)
    assert chosen.kind == "cache", "there is room for the training split"
    whole = open_loader(tiny_shards, "threads").eval_batches("val", 5)
    assert all(same(*pair) for pair in zip(chosen.eval_batches("val", 5), whole, strict=True))
    assert "split val is decoded by threads: The decoded images need" in caplog.text
    chosen.close()
    late = open_loader(tiny_shards, "auto", image_size=14, cache_bytes=50_000)
    assert late.kind == "threads" and late.why.startswith("the cache has no room now: The decoded images need")
    with pytest.raises(NoRoomError):
        open_loader(tiny_shards, "cache", image_size=14, cache_bytes=50_000)
    other.close()
    assert open_loader(tiny_shards, "auto", image_size=14, cache_bytes=50_000).kind == "cache"


def test_what_cannot_work_is_refused_at_once(tiny_shards: str) -> None:
    with pytest.raises(ConfigError, match="46 rows in this epoch, fewer than one global batch of 47"):
        make_loader(DataConfig(), tiny_shards, batch_size=47, seed=0)
    with pytest.raises(ConfigError, match="3 workers cannot share"):
        make_loader(DataConfig(), tiny_shards, batch_size=9, seed=0, world=3)


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ltcore-loader")]


def test_closing_early_leaves_no_threads(tiny_shards: str) -> None:
    loader = open_loader(tiny_shards, "threads")
    batches = loader.train_batches(0)
    next(batches)
    assert feed_threads()
    batches.close()  # type: ignore[attr-defined]
    assert not feed_threads()


def test_prefetch_keeps_order_and_its_bound() -> None:
    running: list[int] = []

    def load(item: int) -> int:
        running.append(item)
        time.sleep(0.002 * (item % 3))
        return item

    results = prefetch(load, iter(range(20)), ahead=4, threads=3)
    for expected, found in enumerate(results):
        assert found == expected
        assert max(running) <= expected + 4
    assert expected == 19


def test_prefetch_raises_at_the_right_place() -> None:
    def load(item: int) -> int:
        if item == 3:
            raise DataError("item 3 is bad")
        return item

    found = []
    with pytest.raises(DataError, match="item 3 is bad"):
        for item in prefetch(load, range(10), ahead=2, threads=2):
            found.append(item)
    assert found == [0, 1, 2]
    assert not feed_threads()


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_bad_samples_stop_by_default(spoiled: Callable[..., str], kind: str) -> None:
    uri = spoiled(1)
    with pytest.raises(DataError, match=r"train-00000.tar: sample 'k0': the image cannot be decoded"):
        list(open_loader(uri, kind).train_batches(0))


def test_bad_samples_are_replaced_and_listed_on_request(spoiled: Callable[..., str]) -> None:
    uri = spoiled(3)
    cached, threaded = (open_loader(uri, kind, max_bad_samples=3) for kind in ("cache", "threads"))
    for first, second in zip(cached.train_batches(0), threaded.train_batches(0), strict=True):
        assert same(first, second)
    keys, labels = cached.store.keys("train"), cached.store.labels("train")
    assert sorted(keys[index] for index in cached.bad_samples) == ["k0", "k2", "k4"]
    assert cached.bad_samples == threaded.bad_samples
    good = [n for n in range(16) if n not in cached.bad_samples and labels[n] == 0]
    sources = {bytes(image_size) for image_size in decode_rows(cached.store, "train", np.array(good), 16)}
    for batch in threaded.train_batches(1):
        for index, image in zip(batch.index_B.tolist(), batch.images_VBCHW[0], strict=True):
            if index in cached.bad_samples:
                assert bytes(image.numpy()) in sources


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_one_bad_sample_too_many(spoiled: Callable[..., str], kind: str) -> None:
    uri = spoiled(3)
    with pytest.raises(DataError, match=r"It is number 3; data\.max_bad_samples=2"):
        list(open_loader(uri, kind, max_bad_samples=2).train_batches(0))


def test_a_filled_cache_does_not_hide_bad_samples(spoiled: Callable[..., str]) -> None:
    uri = spoiled(2)
    open_loader(uri, "cache", max_bad_samples=2).close()
    with pytest.raises(DataError, match=r"2 training images are undecodable; data\.max_bad_samples=1"):
        open_loader(uri, "cache", max_bad_samples=1)


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_evaluation_never_replaces(spoiled: Callable[..., str], kind: str) -> None:
    loader = open_loader(spoiled(1, "val"), kind, max_bad_samples=5)
    with pytest.raises(DataError, match="cannot be decoded"):
        list(loader.eval_batches("val", 4))


def test_a_class_without_a_single_good_image(spoiled: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="no image of class 0 can be decoded"):
        list(open_loader(spoiled(8), "threads", max_bad_samples=8).train_batches(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uri": ""}, "uri must"),
        ({"imbalance_factor": 0.5}, "imbalance_factor must be a finite number >= 1, got 0.5"),
        ({"imbalance_factor": float("nan")}, "imbalance_factor must"),
        ({"subset": "random"}, "subset must be one of auto, keyed, legacy, got 'random'"),
        ({"val_per_class": -1}, "val_per_class must be >= 0"),
        ({"image_size": 0}, r"image_size must be in \[1, 4096\]"),
        ({"loader": "disk"}, "loader must be one of auto, cache, threads, ray"),
        ({"lanes": 0}, "lanes must be >= 1"),
        ({"cache_bytes": -1}, "cache_bytes must be >= 0"),
        ({"prefetch_steps": 0}, "prefetch_steps must be >= 1"),
        ({"max_bad_samples": -1}, "max_bad_samples must be >= 0"),
    ],
)
def test_configuration_errors_start_with_the_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        DataConfig(**change)


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_another_split_can_be_trained_on(kind: str, tiny_shards: str) -> None:
    loader = open_loader(tiny_shards, kind, train_split="val")
    seen = torch.cat([batch.index_B for epoch in range(2) for batch in loader.train_batches(epoch)])
    assert (loader.num_batches, seen.unique().tolist()) == (1, list(range(12)))
    label_of = dict(enumerate(loader.store.labels("val").tolist()))
    for batch in loader.train_batches(1):
        assert batch.labels_B.tolist() == [label_of[i] for i in batch.index_B.tolist()]
    loader.close()


def test_a_test_split_is_not_trained_on_and_a_missing_one_is_named(tiny_shards: str) -> None:
    with pytest.raises(ValueError, match="train_split must name a split that is not a test"):
        DataConfig(train_split="test")
    with pytest.raises(DataError, match=r"no split 'train_cbl'.*It has: test, train, val"):
        open_loader(tiny_shards, "threads", train_split="train_cbl")
