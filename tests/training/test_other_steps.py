"""Methods whose training step is another one (second network, view or stream, mean feature): a cut run ends as a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ltcore.training import trainer as fit
from tests.training.runs import StopAfter, assert_equal_runs, run, tiny_run

STEPS: dict[str, dict[str, Any]] = {
    "lff": {"objective.base": "lff"},
    "bbn": {"objective.base": "bbn", "model.bilateral": True},
    "tde": {"model.head": "tde", "model.tde.decay": 0.5},
    "gpaco": {"objective.base": "gpaco", "objective.base_options.gpaco.queue_size": 16},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_cut_run_ends_where_the_whole_one_does(
    tiny_shards: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the middle of the second epoch."""
    monkeypatch.setattr(fit, "DECIDE_EVERY", 2)
    cfg = tiny_run(**STEPS[name], train__epochs=2)
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(fit.StopRequested, match="in epoch 2 of 2"):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(4))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
