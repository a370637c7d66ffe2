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
from tests.paths import ROOT

TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Parts of your own")[2]
(MODULE,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
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
    assert "all 18 contracts are kept." in capsys.readouterr().out
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
