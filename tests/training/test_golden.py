"""Loss traces of 12 steps in float64, pinned: a change that is not meant to change numbers must not change these.

To renew them after a change that is: ``python -m tests.training.test_golden``, and say in the commit why.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.paths import ROOT
from tests.training.runs import TERMS, plain_steps, tiny_run

FILE = ROOT / "tests" / "golden" / "traces.json"
STEPS = 12
RUNS: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "balanced_softmax": {"objective.base": "balanced_softmax"},
    "logit_adjust": {"objective.base": "logit_adjust"},
    "class_balanced": {"objective.base": "class_balanced"},
    "focal": {"objective.base": "focal"},
    "paco": {
        "objective.base": "paco",
        "objective.base_options.paco.queue_size": 16,
        "objective.base_options.paco.sample_weight": 0.05,
    },
    "all_terms": TERMS,
    "class_aware_dro": {
        "train.sampling": "class_aware",
        "train.images_per_class": 2,
        "objective.base_options.cross_entropy.class_weights": "natural",
        "objective.base_options.cross_entropy.weight_norm": "batch_sum",
        "objective.terms.dro.weight": 1.0,
        "objective.terms.dro.start": 0.0,
    },
}


def trace(uri: str, name: str) -> list[float]:
    return plain_steps(tiny_run(**RUNS[name]).to_dict(), uri, STEPS)["losses"].tolist()


@pytest.mark.parametrize("name", list(RUNS))
def test_the_trace_is_the_pinned_one(tiny_shards: str, name: str) -> None:
    assert trace(tiny_shards, name) == pytest.approx(json.loads(FILE.read_text())[name], rel=1e-7)


def test_every_pinned_trace_is_of_a_run_that_exists() -> None:
    assert set(json.loads(FILE.read_text())) == set(RUNS)


def renew() -> None:
    import tempfile

    from tests.conftest import make_tiny

    with tempfile.TemporaryDirectory() as folder:
        make_tiny(f"{folder}/shards")
        FILE.write_text(json.dumps({name: trace(f"{folder}/shards", name) for name in RUNS}, indent=1) + "\n")


if __name__ == "__main__":
    renew()
