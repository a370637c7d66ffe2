"""The key encoder's decay: by the length of training, or as configured, with a remark where that is too slow."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from ltcore.config.load import load_run
from ltcore.config.schema import RunConfig
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.training.context import StopRequested
from ltcore.training.key_encoder import key_decay, remark, steps_before, users
from tests.training.runs import run, tiny_run, weights

LPA = {"objective.terms.lpa": "on"}


def config(epochs: int = 100, **changes: object) -> RunConfig:
    return RunConfig(name="r").replace({"train.epochs": epochs, "objective.base": "balanced_softmax", **LPA, **changes})


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(48, 11), (30, 84), (200, 84)])
def test_a_twentieth_of_the_start_is_left_where_the_term_starts(epochs: int, steps_per_epoch: int) -> None:
    cfg = config(epochs)
    decay = key_decay(cfg, steps_per_epoch)
    assert decay ** (0.1 * epochs * steps_per_epoch) == pytest.approx(0.05)
    late = config(epochs, **{"objective.terms.lpa.start": 0.2})
    assert key_decay(late, steps_per_epoch) == pytest.approx(min(decay**0.5, 0.999))


def test_published_lengths_have_the_published_decay() -> None:
    """CIFAR-100-LT has 84 steps an epoch in batches of 128; ImageNet-LT 905, iNaturalist 3,418."""
    for epochs, steps_per_epoch in [(400, 84), (400, 905), (400, 3418)]:
        assert key_decay(config(epochs), steps_per_epoch) == 0.999
        assert key_decay(config(epochs, **{"objective.base": "paco"}), steps_per_epoch) == 0.999
    for name in ("cifar100_lt_paco", "imagenet_lt_paco", "inat18_paco", "places_lt_paco"):
        assert load_run(name).model.key_decay == 0.999


def test_a_configured_decay_stays_and_short_trainings_have_one() -> None:
    assert key_decay(config(1, **{"model.key_decay": 0.9999}), 1) == 0.9999
    assert key_decay(config(1), 1) == 0.05
    assert key_decay(RunConfig(name="r"), 84) > 0  # no loss uses it


def test_who_uses_keys_and_from_when() -> None:
    both = config(100, **{"objective.base": "paco", "objective.terms.lpa.start": 0.05, "objective.terms.dro": "on"})
    assert users(both.objective) == {"paco": 0.0, "lpa": 0.05}
    assert steps_before(both, 10) == 50  # PaCo's first step is no measure; LPA's start is
    assert steps_before(config(100, **{"objective.base": "paco", "objective.terms.lpa": None}), 10) == 100


def test_remarks_on_an_encoder_that_is_still_random(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    slow = tiny_run(train__epochs=10, model__key_decay=0.999, **LPA)
    said = remark(slow, manifest)
    assert said.startswith("model.key_decay=0.999: after 10% of training (")
    assert "of the key encoder, which lpa uses, is still its initial weights; model.key_decay=auto would be 0." in said
    assert "which paco and lpa use, is" in remark(slow.replace({"objective.base": "paco"}), manifest)
    assert remark(slow.replace({"model.key_decay": 0.1}), manifest) == ""
    assert remark(slow.replace({"model.key_decay": "auto"}), manifest) == ""
    assert remark(slow.replace({"objective.terms.lpa": None}), manifest) == ""


@pytest.mark.parametrize(("text", "value"), [("0.9", 0.9), ("1", 1.0), ("auto", "auto")])
def test_text_of_the_command_line_is_a_number_or_auto(text: str, value: float | str) -> None:
    assert config(1, **{"model.key_decay": text}).model.key_decay == value


@pytest.mark.parametrize("value", ["automatic", "-0.1", "1.5", "null"])
def test_other_values_are_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.key_decay"):
        config(1, **{"model.key_decay": value})


def test_a_run_goes_on_with_the_same_decay(tiny_shards: str, tmp_path: Path) -> None:
    """What is stored is 'auto': a stop in between changes neither the decay nor any weight."""
    cfg = tiny_run(train__epochs=4, **LPA, **{"objective.terms.lpa.start": 0.25, "objective.terms.lpa.queue_size": 8})
    assert cfg.model.key_decay == "auto"
    run(cfg, tiny_shards, tmp_path / "whole")
    for until in (2, 0):
        with contextlib.suppress(StopRequested):
            run(cfg, tiny_shards, tmp_path / "parts", until=until)
    whole, parts = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    fixed = cfg.replace({"model.key_decay": 0.999})
    run(fixed, tiny_shards, tmp_path / "fixed")
    others = weights(tmp_path / "fixed")
    assert not all(torch.equal(others[name], value) for name, value in whole.items())
