"""What a person is told about a run that trains a part of its network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ltcore.cli.parsers import read_train
from ltcore.cli.train import train
from ltcore.training.cost import dry_run_text

TOLD = "resnet8 with model.tune=head trains 260 of 74,900 parameters (0.35%)"


@pytest.mark.parametrize("dry", [True, False])
def test_the_share_of_trained_parameters_is_told(
    tmp_path: Path, tiny_shards: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    """Once, before training or in a dry run, and written down."""
    monkeypatch.setattr("ltcore.cli.train.dry_run", lambda cfg, uri, root: dry_run_text(cfg, uri))
    shards = str(shutil.copytree(tiny_shards, tmp_path / "shards"))
    keys = ["model.name=resnet8", "model.tune=head", "train.epochs=1", "train.batch_size=8", "tracking.wandb=false"]
    words = ["cifar100_lt_ce", "--data", shards, "--storage", str(tmp_path / "runs"), "--engine", "inline", *keys]
    record = train(read_train("doc", [*words, "--name", "mine", *["--dry-run"] * dry]))
    said = capsys.readouterr()
    assert (said.out + said.err).count(TOLD.removeprefix("resnet8 with ")) == 1
    if record is not None:
        assert TOLD in said.err
        stored = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
        assert (stored["trained_parameters"], stored["parameters"]) == (260, 74_900)
