"""Order, repetition and augmentation follow the run's seed and the epoch, each in a run as it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.batch import Batch
from ltcore.data.augment.augment import Augment
from ltcore.objective.objective import Objective
from ltcore.objective.stage2.sampler import class_aware_rows, shuffled_rows
from ltcore.training import copies, trainer
from ltcore.training.descent import take_step
from tests.training.runs import run, tiny_run

Step = tuple[int, int, list[int], torch.Tensor]
"""Seed of the augmentation, epoch, indices of the samples, and the images."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every training batch after its augmentation."""
    seen, augmented = list[Step](), Augment.__call__

    def spy(self: Augment, batch: Batch, epoch: int, host: Batch | None = None) -> Batch:
        found = augmented(self, batch, epoch, host)
        seen.append((self._seed, epoch, batch.index_B.tolist(), found.images_VBCHW.clone()))
        return found

    monkeypatch.setattr(Augment, "__call__", spy)
    return seen


def epochs_of(steps: list[Step]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for _, epoch, indices, _ in steps:
        found.setdefault(epoch, []).extend(indices)
    return found


@pytest.mark.parametrize("sampling", ["natural", "class_aware"])
def test_order_and_augmentation_differ_by_seed_and_by_epoch(
    steps: list[Step], tiny_shards: str, tmp_path: Path, sampling: str
) -> None:
    orders = {}
    for seed in (3, 4):
        steps.clear()
        run(tiny_run(seed=seed, train__epochs=2, train__sampling=sampling), tiny_shards, tmp_path / f"{seed}")
        assert {step[0] for step in steps} == {seed}
        orders[seed] = epochs_of(steps)
        assert sorted(orders[seed]) == [0, 1] and orders[seed][0] != orders[seed][1]
    assert all(orders[3][epoch] != orders[4][epoch] for epoch in (0, 1))


def test_one_image_is_cropped_otherwise_in_another_epoch(steps: list[Step], tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=2), tiny_shards, tmp_path / "run")
    first, second = (
        {
            index: images_VBCHW[0, b]
            for _, epoch, indices, images_VBCHW in steps
            for b, index in enumerate(indices)
            if epoch == e
        }
        for e in (0, 1)
    )
    both = first.keys() & second.keys()
    assert len(both) > 30 and sum(torch.equal(first[i], second[i]) for i in both) < len(both) / 2


def test_repetition_is_drawn_by_seed_epoch_and_where_the_epoch_begins(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, asked = list[tuple[int, int]](), list[float]()
    draw, may = copies.drawn_copies, trainer.plan_epoch

    def spy(draws_N: Any, seed: int, epoch: int) -> Any:
        drawn.append((seed, epoch))
        return draw(draws_N, seed, epoch)

    def plan(cfg: Any, loader: Any, objective: Any, *rest: Any) -> None:
        told = objective.may_draw
        with monkeypatch.context() as patch:
            patch.setattr(
                objective, "may_draw", lambda progress: asked.append(progress) or told(progress), raising=False
            )
            may(cfg, loader, objective, *rest)

    monkeypatch.setattr(copies, "drawn_copies", spy)
    monkeypatch.setattr(trainer, "plan_epoch", plan)
    ifl = {"objective__terms__ifl": {"env_mode": "repeat", "start": 0.3, "milestones": [0.6]}}
    run(tiny_run(seed=5, train__epochs=4, **ifl), tiny_shards, tmp_path / "run")
    assert drawn == [(5, 2), (5, 3)] and asked == [0.0, 0.25, 0.5, 0.75]


def test_a_step_is_told_how_far_training_is_before_it(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[float]()

    def spy(parts: Any, descent: Any, batch: Batch, progress: float, accumulate: int) -> Any:
        told.append(progress)
        return take_step(parts, descent, batch, progress, accumulate)

    monkeypatch.setattr(trainer, "take_step", spy)
    run(tiny_run(train__epochs=2), tiny_shards, tmp_path / "run")
    assert told == pytest.approx([step / len(told) for step in range(len(told))])


def test_class_aware_and_plain_orders_differ_by_seed_and_by_epoch() -> None:
    labels_N = torch.arange(60) % 4
    for order in (
        lambda seed, epoch: class_aware_rows(labels_N, seed=seed, epoch=epoch),
        lambda seed, epoch: labels_N[class_aware_rows(labels_N, seed=seed, epoch=epoch)],
        lambda seed, epoch: (rows := class_aware_rows(labels_N, seed=seed, epoch=epoch))[labels_N[rows] == 0],
        lambda seed, epoch: shuffled_rows(60, seed=seed, epoch=epoch),
    ):
        one, other_epoch, other_seed = order(0, 0), order(0, 1), order(1, 0)
        assert torch.equal(one, order(0, 0))
        assert not torch.equal(one, other_epoch) and not torch.equal(one, other_seed)


def test_memories_are_told_how_far_training_is_after_each_epoch(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, merge = list[float](), Objective.merge

    def spy(self: Objective, progress: float) -> None:
        told.append(progress)
        merge(self, progress)

    monkeypatch.setattr(Objective, "merge", spy)
    run(tiny_run(train__epochs=4), tiny_shards, tmp_path / "run")
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_keys_follow_the_weights_before_a_step_and_averages_those_after_it(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(net: Any) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten().clone() for parameter in net.parameters()])

    def spy(parts: Any, descent: Any, batch: Batch, progress: float, accumulate: int) -> Any:
        own, key, average = first(parts.step.net), first(parts.step.key.net), first(parts.average.net)
        found = take_step(parts, descent, batch, progress, accumulate)
        for copy, before, weights in ((parts.step.key, key, own), (parts.average, average, first(parts.step.net))):
            torch.testing.assert_close(first(copy.net), copy.decay * before + (1 - copy.decay) * weights)
        return found

    monkeypatch.setattr(trainer, "take_step", spy)
    cfg = tiny_run(train__epochs=1, train__ema_decay=0.9, model__key_decay=0.8, objective__base="paco")
    run(cfg, tiny_shards, tmp_path / "run")
