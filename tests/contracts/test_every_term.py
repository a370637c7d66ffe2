"""What every term promises, for each row of the registry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ltcore.objective.registry import TERMS, Terms
from tests.contracts import harness

RAGGED = harness.ragged()


@pytest.fixture(params=harness.TERM_ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def key(name: str) -> str:
    """The term's name in the objective."""
    return harness.key_of(name)


def test_before_its_start_the_base_is_bitwise_unchanged(name: str, key: str) -> None:
    base = harness.build("balanced_softmax")
    late = harness.fill(harness.build("balanced_softmax", **{key: harness.term_config(name, start=0.5)}))
    out, batch = harness.output_of(late, RAGGED), harness.batch_of(RAGGED)
    plain, other = (harness.evaluate(each, out, batch, progress=0.49) for each in (base, late))
    assert torch.equal(other.loss, plain.loss)
    assert torch.equal(other.grads["logits_BC"], plain.grads["logits_BC"])


def test_null_builds_nothing(key: str) -> None:
    objective = harness.build("balanced_softmax", **{key: None})
    assert not objective.terms
    assert not objective.memories()
    assert not objective.needs


def test_a_term_that_is_off_is_not_built(name: str, key: str) -> None:
    build = TERMS[key].build
    silent = harness.term_config(name, weight=0.0)
    off = silent if build.is_off(silent) else harness.term_config(name, weight=0.0, num_envs=1)
    assert build.is_off(off)  # several environments re-weight without a penalty
    assert not build.is_off(harness.term_config(name))
    plain, other = harness.build("balanced_softmax"), harness.build("balanced_softmax", **{key: off})
    assert list(other.state_dict()) == list(plain.state_dict())
    assert torch.equal(harness.run(other, RAGGED).loss, harness.run(plain, RAGGED).loss)


def test_its_part_enters_with_its_weight(name: str, key: str) -> None:
    def parts(weight: float) -> tuple[float, float]:
        objective = harness.fill(harness.build("balanced_softmax", **{key: harness.term_config(name, weight=weight)}))
        result = objective(harness.output_of(objective, RAGGED, 7), harness.batch_of(RAGGED), harness.PROGRESS)
        return float(result.loss.detach()), float(result.parts[key])

    (loss_1, part_1), (loss_3, part_3) = parts(1.0), parts(3.0)
    assert part_1 == part_3 != 0
    assert loss_3 - loss_1 == pytest.approx(2 * part_1, rel=1e-9)


def test_all_terms_add_up(name: str, key: str) -> None:
    """Loss and gradients are those of the re-weighted base plus those of each penalty, by itself, times its weight."""
    configs = {n: harness.term_config(name if n == key else n) for n in TERMS}
    silent = {n: replace(cfg, weight=0.0) for n, cfg in configs.items()}  # they re-weight the base and do nothing else
    together = harness.fill(harness.build("balanced_softmax", **configs))
    out, batch = harness.output_of(together, RAGGED, 7), harness.batch_of(RAGGED)

    def result(**terms: Any) -> harness.Result:
        return harness.evaluate(harness.fill(harness.build("balanced_softmax", **terms)), out, batch)

    composed, base = harness.evaluate(together, out, batch), result(**silent)
    pieces = [(result(**{n: configs[n]}), result(**{n: silent[n]})) for n in TERMS]
    harness.assert_close(composed.loss, base.loss + sum(live.loss - off.loss for live, off in pieces))
    for field, grad in composed.grads.items():
        assert grad.any(), field
        parts = [live.grads[field] - off.grads.get(field, 0) for live, off in pieces if field in live.grads]
        harness.assert_close(grad, base.grads.get(field, 0) + sum(parts))


def test_weight_and_start_are_checked(key: str) -> None:
    for wrong in ({"weight": -1.0}, {"weight": float("nan")}, {"start": 1.0}, {"start": -0.1}):
        (field,) = wrong
        with pytest.raises(ValueError, match=f"^{field}"):
            TERMS[key].build.Config(**wrong)


def test_default_section_is_null() -> None:
    assert all(getattr(Terms(), name) is None for name in TERMS)


def test_a_term_that_changes_the_shares_of_classes_refuses_another_that_does(name: str, key: str) -> None:
    """``train.sampling`` may repeat images where the term neither weighs nor repeats them."""
    cfg = harness.term_config(name)
    objective = harness.fill(harness.build("balanced_softmax", **{key: cfg}))
    labels_N = harness.batch_of(torch.arange(harness.SAMPLES)).labels_B
    term, memories = objective.terms[key], objective._named[key]
    shares, draws = term.class_shares(memories), term.draws(memories, labels_N)  # type: ignore[operator]
    assert bool(TERMS[key].build.sampling_refusal(cfg)) == (shares is not None or draws is not None)


@pytest.mark.parametrize("key", TERMS)
def test_its_controls_are_further_rows_with_it(key: str) -> None:
    """Each is a valid configuration that differs from the default one and is not off: the base is another row."""
    build = TERMS[key].build
    plain = build.Config()
    for row in TERMS[key].controls:
        control = replace(plain, **row.changes)
        assert row.without and control != plain, row
        assert not build.is_off(control), row
