"""Augmentations of plugins: named, drawn by the keys of ours, and refused where they are no images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ltcore.batch import Batch
from ltcore.cli.complete import candidates
from ltcore.config import keys
from ltcore.config.load import load_run
from ltcore.config.schema import RunConfig
from ltcore.contracts.check import check_plugin
from ltcore.data.augment.augment import Augment
from ltcore.data.augment.config import AugmentConfig
from ltcore.data.augment.policies import reader_crops
from ltcore.errors import ConfigError, PluginError
from ltcore.plugins import loading
from ltcore.training import trainer as fit
from ltcore.training.context import StopRequested
from tests.training.runs import StopAfter, assert_equal_runs, run, tiny_run

VIEWS = {"augment.view1": "channel_drop", "augment.view2": "rrc_drop"}


def test_they_are_listed_and_completed_without_an_import(installed: Path) -> None:
    rows = {(row.kind, row.name): row.summary for row in keys.methods()}
    assert rows["augmentation", "channel_drop"].startswith("sets one") and ("augmentation", "crop_flip") in rows
    assert candidates(["train", "augment.view1=ch"], []) == ["augment.view1=channel_drop"]
    assert candidates(["train", "augment.view2=rrc_d"], []) == ["augment.view2=rrc_drop"]
    assert not [name for name in sys.modules if name.startswith("example_parts")]


def test_a_view_is_pinned_and_others_leave_no_trace(installed: Path) -> None:
    for key, name in VIEWS.items():
        cfg = RunConfig(name="x").replace({key: name})
        assert cfg.plugins == ("example_parts.views==0.3",) and RunConfig.from_flat(cfg.to_flat()) == cfg
    assert "plugins" not in RunConfig(name="x").to_dict()
    with pytest.raises(ConfigError, match=r"augment.view1='channel_dro' is unknown. Did you mean channel_drop"):
        cfg.replace({"augment.view1": "channel_dro"})


def test_a_crop_of_a_plugin_is_made_by_the_reader(installed: Path) -> None:
    loading.load_part("augmentation", "rrc_drop")
    crops = reader_crops(AugmentConfig(view1="channel_drop", view2="rrc_drop"), 2, 224)
    assert [(crop.view, crop.min_area, crop.square) for crop in crops] == [("view1", None, False), ("view2", 0.4, True)]


def test_a_resumed_run_sees_the_same_images(
    installed: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "DECIDE_EVERY", 3)
    """Also where its crops grow by the epoch."""
    grow = {"augment.crop_schedule": "linear", "objective.base_options.paco.queue_size": 16}
    cfg = tiny_run().replace({**VIEWS, "objective.base": "paco", **grow})
    whole = run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(5))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert whole["config"]["plugins"] == "example_parts.views==0.3"


VIEW = """
import random
import numpy as np
import torch
from ltcore import dist, plugins
seen = []
@plugins.augmentation({name!r}, summary="an odd one"{more})
def odd(images, draw, cfg):
    {body}
"""
BROKEN = {
    "draws": ("return images.masked_fill(torch.rand(len(images))[:, None, None, None] < 0.5, 0)", "generator of torch"),
    "draws too": ("return images if np.random.rand() < 2 else images", "generator of numpy.random"),
    "writes": ("return images.fill_(0)", "changes the images that it gets"),
    "resizes": ("return images[:, :, 1:]", "gives torch.uint8 [1, 3, 15, 16] for images [1, 3, 16, 16]"),
    "widens": ("return images.double() / 255", "gives torch.float64"),
    "leaves the range": ("return images.float()", "float images reach from 0 to 255"),
    "is not finite": ("return images / images.float().amax((1, 2, 3), True)", "not finite"),
    "loses images": ("return images[1:]", "for images [1, 3, 16, 16]"),
    "returns nothing": ("pass", "gives NoneType"),
    "looks at others": (
        "return images // 2 + images.flatten(1).amax(1).amax() // 2 - images[:1] // 2",
        "another order",
    ),
    "remembers": ("seen.append(1); return images // (1 + len(seen) // 9)", "images"),
    "asks for the rank": ("return images // (1 + dist.rank())", "another rank"),
    "draws by hand": (
        "g = torch.Generator().manual_seed(draw.epoch); return images // (1 + (torch.rand(1, generator=g) * 9).byte())",
        "images differ by epoch alone",
    ),
}


def odd(folder: Path, body: str = "return images", name: str = "odd_one", more: str = "") -> None:
    (folder / "odd_view.py").write_text(VIEW.format(name=name, body=body, more=more))


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_augmentation_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, reason = BROKEN[what]
    odd(tmp_path, body)
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = [outcome.problem for outcome in check_plugin("odd_view") if outcome.problem]
    assert any(reason in problem for problem in problems), problems


def test_a_run_refuses_images_that_are_changed_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd(tmp_path, "return images.mul_(2)")
    monkeypatch.syspath_prepend(str(tmp_path))
    RunConfig(name="x").replace({"plugins": "odd_view", "augment.view1": "odd_one"})
    batch = Batch(torch.ones(1, 2, 3, 8, 8, dtype=torch.uint8), *(torch.arange(2) for _ in range(3)))
    with pytest.raises(PluginError, match=r"augmentation 'odd_one' changes the images .* work on a copy"):
        Augment(AugmentConfig(view1="odd_one"), seed=0, mean=(0,) * 3, std=(1,) * 3, num_views=1)(batch, 0)


@pytest.mark.parametrize(("more", "name", "said"), [
    ("", "crop_flip", "the augmentation 'crop_flip' exists already in ltcore"),
    (", min_area=1.5", "odd_one", r"min_area must be in \(0, 1\], got 1.5"),
])  # fmt: skip
def test_taken_names_and_impossible_crops_are_refused(
    more: str, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd(tmp_path, name=name, more=more)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=f"plugin odd_view: {said}"):
        load_run("cifar100_lt_ce", {"plugins": "odd_view"})
