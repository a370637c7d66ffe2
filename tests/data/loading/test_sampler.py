from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ltcore.data.loading import sampler as sampler_module
from ltcore.data.loading.sampler import (
    EpochSampler,
    ListedSampler,
    Rows,
    check_batches,
    check_lanes,
    drawn_copies,
    eval_rows,
    keyed_generator,
)
from ltcore.errors import ConfigError

SHARDS = st.lists(st.one_of(st.integers(0, 40), st.sampled_from([0, 1])), min_size=1, max_size=12)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a plan that has at least one batch."""
    rows_per_shard = draw(SHARDS)
    copies = draw(st.one_of(st.none(), st.integers(0, 2**31)))
    batch_size = draw(st.integers(1, 24))
    copies_N = None
    total = sum(rows_per_shard)
    if copies is not None:
        copies_N = np.random.default_rng(copies).integers(0, 4, total)
        total = int(copies_N.sum())
    assume(total >= batch_size)
    return {
        "rows_per_shard": rows_per_shard,
        "seed": draw(st.integers(0, 100)),
        "epoch": draw(st.integers(0, 20)),
        "batch_size": batch_size,
        "lanes": draw(st.sampled_from([1, 4, 6, 64])),
        "copies_N": copies_N,
    }


def make(arguments: dict[str, Any], **changes: Any) -> EpochSampler:
    options = {**arguments, **changes}
    return EpochSampler(options.pop("rows_per_shard"), **options)


def pairs(rows: Rows) -> list[tuple[int, int]]:
    return list(zip(rows.index_B.tolist(), rows.copy_B.tolist(), strict=True))


def epoch_pairs(plan: EpochSampler, rank: int = 0, start_step: int = 0) -> list[list[tuple[int, int]]]:
    return [pairs(rows) for rows in plan.rank_batches(rank, start_step)]


@settings(max_examples=150, deadline=None)
@given(plans())
def test_every_virtual_row_at_most_once_and_batches_full(arguments: dict[str, Any]) -> None:
    plan = make(arguments)
    batches = epoch_pairs(plan)
    num_rows = sum(arguments["rows_per_shard"])
    copies_N = arguments["copies_N"] if arguments["copies_N"] is not None else np.ones(num_rows, np.int64)
    allowed = {(index, copy) for index in range(num_rows) for copy in range(copies_N[index])}
    used = [pair for batch in batches for pair in batch]
    assert len(batches) == plan.num_batches == int(copies_N.sum()) // arguments["batch_size"]
    assert {len(batch) for batch in batches} == {arguments["batch_size"]}
    assert len(used) == len(set(used)) == plan.num_rows
    assert set(used) <= allowed


@settings(max_examples=100, deadline=None)
@given(plans())
def test_consecutive_epochs_cover_everything(arguments: dict[str, Any]) -> None:
    plan = make(arguments)
    total = int(plan._first_S[-1])
    needed = -(-total // plan.num_rows)
    seen = Counter(
        pair
        for epoch in range(arguments["epoch"], arguments["epoch"] + needed)
        for batch in epoch_pairs(make(arguments, epoch=epoch))
        for pair in batch
    )
    assert len(seen) == total


@settings(max_examples=150, deadline=None)
@given(plans(), st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_global_batches_do_not_depend_on_the_number_of_ranks(arguments: dict[str, Any], world: int) -> None:
    lanes = math.gcd(arguments["lanes"], arguments["batch_size"])
    if lanes % world:
        with pytest.raises(ConfigError, match="or another number of workers"):
            make(arguments, world=world)
        return
    exclusive, shared = make(arguments), make(arguments, world=world)
    ranks = [epoch_pairs(shared, rank) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {exclusive.num_batches}
    joined = [[pair for part in parts for pair in part] for parts in zip(*ranks, strict=True)]
    assert joined == epoch_pairs(exclusive)


@settings(max_examples=150, deadline=None)
@given(plans(), st.data())
def test_resume_at_any_step_is_the_rest_of_the_epoch(arguments: dict[str, Any], data: st.DataObject) -> None:
    batches = epoch_pairs(make(arguments))
    step = data.draw(st.integers(0, len(batches)))
    assert epoch_pairs(make(arguments), start_step=step) == batches[step:]


def test_the_order_is_that_of_a_naive_plan() -> None:
    rows_per_shard, batch_size, seed, epoch = [5, 0, 9, 1, 11], 8, 3, 2
    plan = EpochSampler(rows_per_shard, seed=seed, epoch=epoch, batch_size=batch_size, lanes=4)
    total, used = 26, 24
    dropped = {((epoch + 1) * used + n) % total for n in range(total - used)}
    order = []
    for shard in plan._order_S:
        first = sum(rows_per_shard[:shard])
        kept = [row for row in range(first, first + rows_per_shard[shard]) if row not in dropped]
        order.append(kept)
    flat = [index for batch in epoch_pairs(plan) for index, _ in batch]
    lanes = [[flat[step * 8 + lane * 2 + n] for step in range(3) for n in range(2)] for lane in range(4)]
    in_plan_order = [index for lane in lanes for index in lane]
    for kept in order:  # each shard is one contiguous, permuted stretch
        assert sorted(in_plan_order[: len(kept)]) == kept
        in_plan_order = in_plan_order[len(kept) :]
    assert in_plan_order == []


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    def order(**changes: Any) -> list[list[tuple[int, int]]]:
        return epoch_pairs(EpochSampler([50] * 4, **{"seed": 0, "epoch": 0, "batch_size": 10, **changes}))

    assert order() == order()
    assert order() != order(seed=1)
    assert order() != order(epoch=1)


def test_each_row_is_dropped_equally_often() -> None:
    used = Counter(
        index
        for epoch in range(10)
        for batch in epoch_pairs(EpochSampler([4, 6], seed=0, epoch=epoch, batch_size=7))
        for index, _ in batch
    )
    assert [used[index] for index in range(10)] == [7] * 10


def test_a_rank_reads_about_its_share_of_the_shards() -> None:
    world, rows_per_shard = 8, [100] * 80
    plan = EpochSampler(rows_per_shard, seed=0, epoch=0, batch_size=64, world=world)
    for rank in range(world):
        shards = {index // 100 for rows in plan.rank_batches(rank) for index in rows.index_B.tolist()}
        assert len(shards) <= 80 // world + 1


def test_only_shards_under_the_cursors_are_expanded() -> None:
    plan = EpochSampler([100] * 50, seed=0, epoch=0, batch_size=8, lanes=4)
    for _ in plan.rank_batches(0):
        assert len(plan._expanded) <= 4
    assert len(plan._expanded) == 0


def test_a_million_rows_are_planned_fast() -> None:
    start = time.perf_counter()
    plan = EpochSampler([1000] * 1000, seed=0, epoch=1, batch_size=256, world=8, copies_N=np.full(10**6, 2))
    next(plan.rank_batches(7, start_step=plan.num_batches - 1))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("rows_per_shard", [[], [0], [3, 4]])
def test_less_than_one_batch_is_refused(rows_per_shard: list[int]) -> None:
    with pytest.raises(ConfigError, match=rf"has {sum(rows_per_shard)} rows .* fewer than one global batch of 8"):
        EpochSampler(rows_per_shard, seed=0, epoch=0, batch_size=8)


def test_the_advice_for_an_indivisible_number_of_workers_works() -> None:
    with pytest.raises(ConfigError, match=r"data\.lanes=192 and a batch size that is a multiple of 3"):
        EpochSampler([1000], seed=0, epoch=0, batch_size=64, world=3)
    assert EpochSampler([1000], seed=0, epoch=0, batch_size=66, world=3, lanes=192).num_batches == 15


@given(st.lists(st.just(0.0) | st.floats(1e-3, 9), min_size=1, max_size=40).filter(any), st.integers(0, 9))
def test_drawn_copies_are_next_to_the_weights_and_fill_the_epoch(weights: list[float], epoch: int) -> None:
    copies_N = drawn_copies(np.array(weights), seed=1, epoch=epoch)
    mean_one_N = np.array(weights) * (len(weights) / sum(weights))
    assert copies_N.sum() == len(weights)
    assert (np.abs(copies_N - mean_one_N) < 1 + 1e-9).all()
    np.testing.assert_array_equal(copies_N, drawn_copies(np.array(weights), seed=1, epoch=epoch))


def test_drawn_copies_are_the_weights_in_expectation() -> None:
    weights_N = np.array([0.0, 0.25, 1.7, 3.0, 0.3, 0.75])
    epochs = 4000
    mean_N = np.mean([drawn_copies(weights_N, seed=0, epoch=epoch) for epoch in range(epochs)], axis=0)
    np.testing.assert_allclose(mean_N, weights_N, atol=4 * 0.5 / epochs**0.5)  # four deviations at most
    assert mean_N[0] == 0 and mean_N[3] == 3, "whole numbers are exact"


@pytest.mark.parametrize("copies_N", [np.ones(4, np.int64), np.array([1, 1, -1, 5, 1])])
def test_wrong_copies_are_refused(copies_N: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="copies_N must be 5 integers >= 0"):
        EpochSampler([2, 3], seed=0, epoch=0, batch_size=1, copies_N=copies_N)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 33))
def test_evaluation_sees_every_row_once(num_rows: int, world: int, batch_size: int) -> None:
    slices = [part for rank in range(world) for part in eval_rows(num_rows, rank, world, batch_size)]
    assert [row for part in slices for row in part.tolist()] == list(range(num_rows))
    assert all(0 < len(part) <= batch_size for part in slices)


def test_lanes_are_checked_without_an_epoch() -> None:
    assert check_lanes(64, 128, 4) == 64 and check_lanes(64, 96, 2) == 32
    with pytest.raises(ConfigError, match=r"3 workers cannot share the 64 lanes of a global batch of 64 .*lanes=192"):
        check_lanes(64, 64, 3)
    assert check_batches(64, 64) == 1
    with pytest.raises(ConfigError, match="63 rows in this epoch, fewer than one global batch of 64"):
        check_batches(63, 64)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60), st.sampled_from([1, 2, 3, 6]), st.integers(0, 1))
def test_a_given_order_is_cut_into_the_same_batches_for_every_number_of_ranks(
    order: list[int], world: int, start_step: int
) -> None:
    order_L = np.array(order)
    plan = ListedSampler(order_L, batch_size=12, world=world)
    ranks = [list(plan.rank_batches(rank, start_step)) for rank in range(world)]
    steps = [[pair for rows in step for pair in pairs(rows)] for step in zip(*ranks, strict=True)]
    assert len(steps) == plan.num_batches - start_step
    seen: Counter[int] = Counter()
    expected = []
    for row in order:
        expected.append((row, seen[row]))
        seen[row] += 1
    assert [pair for step in steps for pair in step] == expected[12 * start_step : 12 * plan.num_batches]


def test_an_order_that_fills_no_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 3 rows in this epoch, fewer than one global batch of 4"):
        ListedSampler(np.arange(3), batch_size=4)


def test_copies_are_the_same_in_chunks_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_N = np.random.default_rng(0).random(1000)
    reached_N = np.cumsum(weights_N) * (1000 / np.cumsum(weights_N)[-1])
    reached_N[-1] = 1000
    uniform = keyed_generator(3, 4, "copies").random()
    expected = np.diff(np.floor(reached_N + uniform), prepend=0.0).astype(int).tolist()
    for chunk in (1, 7, 500, 1000, 5000):
        monkeypatch.setattr(sampler_module, "_CHUNK", chunk)
        assert drawn_copies(weights_N, 3, 4).tolist() == expected


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_shards_without_rows_have_no_copies_either(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "_CHUNK_SHARDS", chunk)
    copies_N = np.array([2, 0, 1, 3], np.int32)
    rows = [0, 2, 0, 0, 1, 1, 0]
    sampler = EpochSampler(rows, seed=0, epoch=0, batch_size=6, copies_N=copies_N, lanes=1)
    (batch,) = sampler.rank_batches(0)
    assert np.bincount(batch.index_B, minlength=4).tolist() == copies_N.tolist()


@pytest.mark.parametrize("rows_per_shard", [[200], [1] * 200])
def test_rows_and_shards_are_each_shuffled_by_seed_and_epoch(rows_per_shard: list[int]) -> None:
    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return epoch_pairs(EpochSampler(rows_per_shard, seed=seed, epoch=epoch, batch_size=10))

    assert order(0, 0) != order(1, 0) and order(0, 0) != order(0, 1)


def test_every_shard_has_an_order_of_its_own() -> None:
    batches = epoch_pairs(EpochSampler([50] * 2, seed=0, epoch=0, batch_size=10))
    order = [divmod(index, 50) for batch in batches for index, _ in batch]
    first, second = ([place for shard, place in order if shard == s] for s in (0, 1))
    assert first != second
