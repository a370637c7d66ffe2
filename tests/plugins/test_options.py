"""Options of networks, augmentations, samplers and metrics of plugins: keys like those of losses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ltcore
from ltcore.cli.complete import candidates
from ltcore.config import keys
from ltcore.config.schema import RunConfig
from ltcore.contracts.check import check_plugin
from ltcore.errors import ConfigError
from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from ltcore.training.same_run import differences
from tests.training.runs import StopAfter, assert_equal_runs, run, tiny_run

PARTS = '''
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from ltcore import Backbone, Metric, plugins
from ltcore.errors import within

@plugins.augmentation("dim", summary="darker images")
class Dim:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        factor: float = 0.5
        """What pixels are multiplied by. Range [0, 1]."""
        def __post_init__(self):
            within("[0, 1]", factor=self.factor)
    def __init__(self, cfg):
        self.cfg = cfg
    def __call__(self, images, draw, cfg):
        return images.float() / 255 * self.cfg.factor

@plugins.sampler("tail", summary="small classes come more often")
class Tail:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        power: float = 0.5
        """Power of the size of a class by which its images are divided."""
    def __init__(self, cfg):
        self.cfg = cfg
    def __call__(self, samples):
        return 1 / samples.counts_C[samples.labels_N] ** self.cfg.power

@plugins.model("slim", summary="one convolution")
class Slim:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        channels: int = 8
        """Features of the network."""
    def __init__(self, cfg):
        self.cfg = cfg
    def __call__(self, norm, num_experts, expert_width):
        width, branches = self.cfg.channels, []
        for _ in range(num_experts):
            branch = nn.Sequential()
            branch.add_module("layer1", nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, bias=False), norm(width), nn.ReLU()))
            branches.append(branch)
        trunk = nn.Sequential()
        trunk.add_module("conv1", nn.Conv2d(3, width, 3, 2, 1, bias=False))
        return Backbone(trunk, branches, width, {}, conv_fan="fan_in", min_px=8)

@plugins.metric("share", summary="share of the images that a class has of its own")
class Share(Metric):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        scale: float = 1.0
        """What the share is multiplied by."""
    def __init__(self, cfg):
        self.cfg = cfg
    def value(self, counted):
        total = counted.samples_C.sum()
        return self.cfg.scale * counted.counts_CC.trace() / total if total else None

@plugins.augmentation("plain", summary="as it is")
def plain(images, draw, cfg):
    return images
'''
OPTIONS = {
    "augment.options.dim.factor": 0.25,
    "train.sampling_options.tail.power": 1.0,
    "model.options.slim.channels": 12,
}
CHOICES = {"augment.view1": "dim", "train.sampling": "tail", "model.name": "slim"}
SCALE = {"metrics.share.scale": 0.5}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_parts"


def test_without_plugins_no_section_and_no_key_is_there() -> None:
    tree = RunConfig(name="x").to_dict()
    assert "options" not in tree["augment"] and "options" not in tree["model"] and "metrics" not in tree
    assert "sampling_options" not in tree["train"]
    assert not [key for key, _ in keys.find("options.") if not key.startswith(("objective.", "stage2."))]


def test_they_are_read_and_completed_without_an_import(parts: str) -> None:
    flags = ["train", "--plugin", parts]
    assert candidates([*flags, "augment.options."], []) == ["augment.options.dim.factor="]
    found = {key: leaf for key, leaf in keys.find(None) if key in OPTIONS | SCALE}
    assert found.keys() == OPTIONS.keys() | SCALE.keys()
    leaf = found["augment.options.dim.factor"]
    assert (leaf.default, leaf.type, leaf.allowed.interval) == (0.5, "float", "[0, 1]") and "multiplied" in leaf.doc
    assert parts not in sys.modules


def test_what_is_not_chosen_is_refused_and_what_is_stands_in_the_configuration(parts: str) -> None:
    plain = RunConfig(name="x").replace({"plugins": parts})
    for key, (choice, name) in zip(OPTIONS, CHOICES.items(), strict=True):
        with pytest.raises(ConfigError, match=rf"options of {name} have no effect: remove them or set {choice}={name}"):
            plain.replace({key: OPTIONS[key]})
    cfg = plain.replace(CHOICES | OPTIONS | SCALE)
    flat = cfg.to_flat()
    assert {key: flat[key] for key in OPTIONS | SCALE} == OPTIONS | SCALE and RunConfig.from_flat(flat) == cfg
    assert not [key for key in plain.to_flat() if key in OPTIONS]
    other = RunConfig(name="y").to_dict()  # where the plugin is known, and not used
    assert "metrics" not in other and "plugins" not in other and "options" not in other["model"]
    assert not keys.comes_from_stage1("metrics.share.scale") and keys.comes_from_stage1("model.options.slim.channels")
    assert differences(flat, cfg.replace({"model.options.slim.channels": 8}).to_flat()).keys() == {
        "model.options.slim.channels"
    }
    with pytest.raises(ConfigError, match=r"augment.options.dim.factor must be in \[0, 1\], got 2"):
        cfg.replace({"augment.options.dim.factor": 2.0})


def test_a_run_follows_them_and_goes_on_with_them(
    parts: str, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    cfg = tiny_run().replace({"plugins": parts, **CHOICES, **OPTIONS, **SCALE})
    whole = run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(5))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    test = whole["test"]["test"]
    assert test["share"] == pytest.approx(0.5 * test["top1"])
    assert ltcore.load(tmp_path / "whole").net.state_dict()["backbone.trunk.conv1.weight"].shape[0] == 12
    for key, other in (("augment.options.dim.factor", 0.75), ("train.sampling_options.tail.power", 0.0)):
        changed = run(cfg.replace({key: other}), tiny_shards, tmp_path / key)
        assert changed["last"]["train/loss"] != whole["last"]["train/loss"], key


def test_the_contracts_hold_them_to_their_source(parts: str, tmp_path: Path) -> None:
    outcomes = list(check_plugin(parts))
    assert not [outcome for outcome in outcomes if outcome.problem]
    documented = [outcome.part for outcome in outcomes if outcome.contract.startswith("options are documented")]
    assert documented == ["augmentation dim", "sampler tail", "model slim", "metric share"]


WRITTEN = "@dataclass(frozen=True, kw_only=True)\n    class Config:\n        factor: float = 0.5\n"
HIDDEN = "Config = vars(Hidden)['Inner']\n"


@pytest.mark.parametrize(
    ("config", "problem"), [(WRITTEN, "Config.factor has no docstring under it"), (HIDDEN, "not seen in the source")]
)
def test_options_that_the_source_does_not_show_are_told(
    config: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_parts.py").write_text(
        "from dataclasses import dataclass\nfrom ltcore import plugins\n"
        "class Hidden:\n    @dataclass(frozen=True, kw_only=True)\n    class Inner:\n        factor: float = 0.5\n"
        f"@plugins.augmentation('odd', summary='an odd one')\nclass Odd:\n    {config}"
        "    def __init__(self, cfg):\n        pass\n    def __call__(self, images, draw, cfg):\n        return images\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert any(problem in outcome.problem for outcome in check_plugin("odd_parts"))
