"""``ltcore check MODULE``, and the plugin that CONTRIBUTING shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltcore.cli import main
from ltcore.contracts.check import check_plugin
from ltcore.models.net import ModelConfig
from tests.paths import ROOT

TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Parts of your own")[2]
MODULE = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^ltcore (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)


MODULES = ("losses", "terms", "networks", "images", "classifiers", "watch", "views", "streams", "scores")


@pytest.mark.parametrize("module", MODULES)
def test_every_part_of_the_example_keeps_its_contracts(beside: Path, module: str) -> None:
    found = list(check_plugin(f"example_parts.{module}"))
    assert len(found) >= 3 and {outcome.problem for outcome in found} == {""}


BROKEN = {
    "reduces": ("return out.logits_BC.logsumexp(1).mean()", "one number per sample", "expected [B]"),
    "draws": (
        "return torch.rand(len(labels_B)).double() + out.logits_BC.logsumexp(1)",
        "twice is the same",
        "another number",
    ),
    "sees numbers of classes": ("return out.logits_BC[:, 0]", "renumbering the classes", "not close"),
    "overflows": ("return out.logits_BC.exp().sum(1)", "extreme logits", "loss is inf"),
    "detaches": (
        "return out.logits_BC.square().sum(1).detach() + out.logits_BC.sum(1)",
        "gradient is that",
        "Jacobian mismatch",
    ),
    "fails": ("raise RuntimeError('no\\nway')", "zero features", "RuntimeError: no way"),
}

LOSS = """
from dataclasses import dataclass
import torch
from ltcore import Base, plugins
@plugins.loss("odd_one", summary="an odd one")
class Odd(Base):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        size: float = 1.0
        {doc}
    def forward(self, out, labels_B, ctx):
        {body}
"""
DOC = '"""A number that means nothing."""'


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_contract_is_found_and_said(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body, contract, reason = BROKEN[what]
    (tmp_path / "odd_loss.py").write_text(LOSS.format(doc=DOC, body=body))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main.check(argv=["odd_loss"]) == 1
    said = capsys.readouterr().out
    failed = re.search(rf"failed +[^\n]*{contract}[^\n]*\n((?: {{10}}[^\n]*\n)+)", said)
    assert failed and reason in " ".join(failed[1].split()), said
    assert re.search(r"^\d+ of 18 contracts are broken.$", said, re.MULTILINE)
    assert said.startswith("loss odd_one\n  ok      options are documented")


VIT = """
import torch
from torch import nn
from ltcore import Backbone, plugins
class Vit(Backbone):
    def __init__(self):
        nn.Module.__init__(self)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token_D = nn.Parameter(torch.randn(16) / 4)
        self.places_PD = nn.Parameter(torch.randn(16, 16) / 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(2))
        self.expert_dim = self.fmap_dim = 16
        self.stage_dims, self.conv_fan, self.min_px = {"stage1": 16}, "", 32
    def with_stages(self, images_BCHW, stages):
        return self.outputs(images_BCHW, stages)[1:]
    def outputs(self, images_BCHW, asked):
        patches_BPD = self.patches(images_BCHW).flatten(2).transpose(1, 2) + self.places_PD
        first_BPD = self.blocks[0](torch.cat([self.token_D.expand(len(patches_BPD), 1, 16), patches_BPD], 1))
        last_BPD = self.blocks[1](first_BPD)
        fmaps, stage_fmaps = [self.cells(last_BPD)], {"stage1": self.cells(first_BPD)} if "stage1" in asked else {}
        return [last_BPD[:, 0].float()], fmaps, stage_fmaps
    def cells(self, tokens_BPD):
        return tokens_BPD[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
@plugins.model("odd_vit", summary="reads a class token", stages=("stage1",), branches=False)
def odd_vit(norm, num_experts, expert_width):
    return Vit()
"""
ODD_VITS = {
    "no image": (
        "return [last_BPD[:, 0]",
        "return [0 * last_BPD[:, 0] + self.token_D",
        "another image gives the same features",
    ),
    "blind": ("self.patches(images_BCHW)", "self.patches(0 * images_BCHW)", "another image gives the same features"),
    "wide": (
        "self.expert_dim = self.fmap_dim = 16",
        "self.expert_dim, self.fmap_dim = 32, 16",
        "features are [(4, 16)], told were [(4, 32)]",
    ),
    "drops": ("32, 0.0, batch_first", "32, 0.1, batch_first", "it draws from the global generator of torch"),
    "fmap_dim": (
        "self.expert_dim = self.fmap_dim = 16",
        "self.expert_dim, self.fmap_dim = 16, 8",
        "told was (4, 8, h, w)",
    ),
    "stage_dims": ('{"stage1": 16}', '{"stage1": 8}', "stage1 is (4, 16, 4, 4), told was (4, 8, h, w)"),
    "no stage": ('if "stage1" in asked', 'if "stage7" in asked', "stage1 is missing, told was (4, 16, h, w)"),
    "other stage": ('stages=("stage1",)', 'stages=("stage2",)', "stage_dims names ('stage1',), the row ('stage2',)"),
    "transposed": ("(4, 4))", "(4, 4)).transpose(2, 3)", "the 4 x 4 cells of the feature map do not lie as"),
    "in a row": ("(4, 4))", "(1, 16))", "the 1 x 16 cells of the feature map do not lie as"),
    "wrong strides": (
        "self.cells(last_BPD)",
        "self.cells(last_BPD).repeat(1, 1, 2, 2)[:, :, 2:6, 2:6]",
        "the 4 x 4 cells of the feature map do not lie as",
    ),
    "one for all cells": (
        "unflatten(2, (4, 4))",
        "unflatten(2, (4, 4))[..., :1, :1].expand(-1, -1, 4, 4)",
        "are all the same",
    ),
    "branches": (", branches=False", "", "does not branch says so by branches=False"),
}
"""What is wrong with a network -> text of the right one, what stands there instead, and what is said."""


def problems_of_vit(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    (folder / "odd_vit.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return [outcome.problem for outcome in check_plugin("odd_vit")]


def test_a_network_with_a_class_token_keeps_its_contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems_of_vit(tmp_path, monkeypatch, VIT) == [""] * 7
    for key, value in {"num_experts": 2, "bilateral": True}.items():
        with pytest.raises(
            ValueError, match=rf"{key}=\w+ does not go with name=odd_vit, as this network does not branch"
        ):
            ModelConfig(name="odd_vit", **{key: value})  # type: ignore[arg-type]


def test_a_residual_branch_may_begin_at_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies before a zero has no gradient in the first step alone."""
    begins = "        for block in self.blocks: nn.init.zeros_(block.linear2.weight)\n"
    text = VIT.replace("        self.expert_dim", begins + "        self.expert_dim", 1)
    assert problems_of_vit(tmp_path, monkeypatch, text) == [""] * 7


@pytest.mark.parametrize("what", ODD_VITS)
def test_a_wrong_network_is_found_and_said(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, said = ODD_VITS[what]
    assert right in VIT
    found = problems_of_vit(tmp_path, monkeypatch, VIT.replace(right, wrong))
    assert any(said in problem for problem in found), found


ARRAYS = """
import hashlib, io
from pathlib import Path
import numpy as np
from PIL import Image
from ltcore import Dataset, plugins
from ltcore.data.shards.source import Sample, Source
@plugins.dataset("arrays", summary="images in a file of numpy")
class Arrays(Dataset):
    by_path, has_selection = True, False
    def __init__(self, cfg, **options):
        super().__init__(cfg, **options)
        self.path = Path(cfg.uri)
        self.name, self.identity = self.path.stem, hashlib.sha256(self.path.read_bytes()).hexdigest()
    @staticmethod
    def recognizes(uri):
        return uri.endswith(".npz")
    @staticmethod
    def example(folder):
        rng, uri = np.random.default_rng(0), folder + "/pets.npz"
        np.savez(uri, **{split: rng.integers(0, 256, (6, 8, 8, 3), np.uint8) for split in ("train", "val", "test")})
        return uri
    def source(self):
        with np.load(self.path) as stored:
            splits = {split: [self.sample(split, n, stored[split][n]) for n in range(6)] for split in stored}
        half = (0.5, 0.5, 0.5)
        return Source(name=self.name, classes=("cats", "dogs"), image_size=8, mean=half, std=half, shot_rule="rank",
                      provenance={"source": "arrays"}, splits=splits)
    def sample(self, split, n, pixels):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return Sample(f"{split}_{n}", out.getvalue(), "png", n % 2)
"""
EXAMPLE = ARRAYS[ARRAYS.index("    @staticmethod\n    def example") : ARRAYS.index("    def source")]
ODD_ARRAYS = {
    "takes folders": ('uri.endswith(".npz")', "Path(uri).exists()", "it recognizes a folder of images by class"),
    "takes nothing": ('uri.endswith(".npz")', 'uri.endswith(".npy")', "recognizes its example, not Arrays"),
    "takes all names": ('uri.endswith(".npz")', "not Path(uri).exists()", "it recognizes a place where nothing is"),
    "one identity": ("self.path.read_bytes()", "b''", "pets.npz has grown, but the identity stays"),
    "path as name": ("self.path.stem,", "str(self.path),", "it needs to be one word"),
    "tells its path": ('"arrays"}', '"arrays", "path": str(self.path)}', "the provenance has the path of its place"),
    "reads one split": ("for split in stored", 'for split in ["train"]', "splits are ['train']"),
}
"""What is wrong with a source by path -> text of the right one, what stands there instead, and what is said."""


def problems_of_arrays(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    (folder / "odd_arrays.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return [outcome.problem for outcome in check_plugin("odd_arrays")]


@pytest.mark.parametrize(("text", "contracts"), [(ARRAYS, 9), (ARRAYS.replace(EXAMPLE, ""), 1)])
def test_a_source_by_path_is_held_to_contracts_on_its_example(
    text: str, contracts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problems_of_arrays(tmp_path, monkeypatch, text) == [""] * contracts


@pytest.mark.parametrize("what", ODD_ARRAYS)
def test_a_wrong_source_by_path_is_found_and_said(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, said = ODD_ARRAYS[what]
    assert right in ARRAYS
    found = problems_of_arrays(tmp_path, monkeypatch, ARRAYS.replace(right, wrong))
    assert any(said in problem for problem in found), found


def test_an_option_without_a_docstring_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_loss.py").write_text(LOSS.format(doc="", body="return out.logits_BC.logsumexp(1)"))
    monkeypatch.syspath_prepend(str(tmp_path))
    first = next(iter(check_plugin("odd_loss")))
    assert first.problem == "Config.size has no docstring under it"


def test_the_plugin_of_contributing_keeps_its_contracts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    check, keys, train = (command.split() for command in COMMANDS)
    assert main.check(argv=check[1:]) == 0
    assert "all 25 contracts are kept." in capsys.readouterr().out
    main.keys(argv=keys[1:])
    assert "objective.base_options.confident.reward = 0.1    (float)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as shown:
        main.train(argv=[*train[1:], "--show"])
    assert shown.value.code == 0
    assert "reward: 0.2" in capsys.readouterr().out


def test_the_commands_of_contributing_find_a_module_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "my_parts.py").write_text(MODULE)
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; from ltcore.cli.main import console_script; console_script()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["--plugin", "my_parts", "methods"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "  confident           cross-entropy with a reward for confidence" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", code, "keys", "--plugin", "yours"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: plugin yours is not found: install its package, or start from the folder that holds yours.\n"
    )
