"""The classifier 'tde' in whole runs: its mean feature in checkpoints, averages and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from ltcore.training.export import export
from tests.training.runs import run, tiny_run

TDE: dict[str, Any] = {"model.head": "tde", "model.tde.decay": 0.5, "train.epochs": 2}
IMAGES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_what_predicts_takes_the_mean_out_also_as_a_file(tiny_shards: str, tmp_path: Path) -> None:
    """The same weights under another alpha predict otherwise; an averaged network has the mean, too."""
    for alpha in (0.0, 1.5):
        run(tiny_run(**TDE, model__tde__alpha=alpha, train__ema_decay=0.5), tiny_shards, tmp_path / str(alpha))
    plain, changed = (ltcore.load(tmp_path / str(alpha)) for alpha in (0.0, 1.5))
    for name, value in plain.net.state_dict().items():
        assert torch.equal(value, changed.net.state_dict()[name]), name
    assert plain.net.state_dict()["heads.0.running_mean"].abs().sum() > 0
    assert not torch.allclose(plain.logits(IMAGES), changed.logits(IMAGES), atol=0.1)
    assert export(changed, str(tmp_path / "model.pt2"), IMAGES) < 1e-3
