"""What every term promises, for each row of the registry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ltcore.contracts import harness, losses
from ltcore.objective.registry import TERMS, Terms

RAGGED = harness.ragged()


@pytest.fixture(params=harness.TERM_ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def key(name: str) -> str:
    """The term's name in the objective."""
    return harness.key_of(name)


def test_before_its_start_the_base_is_bitwise_unchanged(name: str) -> None:
    losses.before_its_start_the_base_is_bitwise_unchanged(("term", name))


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


def test_its_part_enters_with_its_weight(name: str) -> None:
    losses.its_part_enters_with_its_weight(("term", name))


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


def test_weight_and_start_are_checked(name: str) -> None:
    losses.weight_and_start_are_checked(("term", name))


def test_default_section_is_null() -> None:
    assert all(getattr(Terms(), name) is None for name in TERMS)


def test_a_term_that_changes_the_shares_of_classes_refuses_another_that_does(name: str) -> None:
    losses.what_changes_class_shares_refuses_sampling(("term", name))


@pytest.mark.parametrize("key", TERMS)
def test_its_controls_are_further_rows_with_it(key: str) -> None:
    """Each is a valid configuration that differs from the default one and is not off: the base is another row."""
    build = TERMS[key].build
    plain = build.Config()
    for row in TERMS[key].controls:
        control = replace(plain, **row.changes)
        assert row.without and control != plain, row
        assert not build.is_off(control), row
