"""What the shell is told that may come next, asked as a function and through the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli.complete import candidates
from ltcore.cli.main import COMMANDS
from ltcore.config import keys
from ltcore.config.recipes import packaged
from tests.commands import command
from tests.paths import ROOT

__all__ = ["command"]


TAILS = ("", "_evos", "_frn", "_gn")


def after(line: str) -> list[str]:
    return candidates(line.split(" ")[1:], COMMANDS)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ltcore tr", ["train"]),
        ("ltcore --v", ["--version"]),
        ("ltcore train --eng", ["--engine"]),
        ("ltcore train --engine tr", ["trial", "train"]),
        ("ltcore train --engine=tr", ["--engine=trial", "--engine=train"]),
        ("ltcore train cifar100_lt_ce_", ["cifar100_lt_ce_decay"]),
        ("ltcore train --seed 3 --engine trial x train.optim.mil", ["train.optim.milestones="]),
        ("ltcore train --seed ", []),
        ("ltcore shards glt photos out --disc", ["--discover"]),
        ("ltcore shards glt --profile ex", ["exponential"]),
        ("ltcore shards --im", ["--imbalance-factor", "--images", "--image-column"]),
        (
            "ltcore show x train.optim.schedule=",
            [f"train.optim.schedule={w}" for w in ("multistep", "cosine", "cosine_after_warmup", "constant")],
        ),
        ("ltcore train tracking.wandb=", ["tracking.wandb=true", "tracking.wandb=false"]),
        ("ltcore train objective.terms.lpa=", ["objective.terms.lpa=null", "objective.terms.lpa=on"]),
        ("ltcore train data.image_size=", ["data.image_size=null"]),
        ("ltcore train data.uri=digits", ["data.uri=digits-glt"]),
        ("ltcore train --data digits", ["digits-glt"]),
        (
            "ltcore train model.tune=",
            [f"model.tune={w}" for w in ("full", "head", "bias", "norm", "lora", "adaptformer", "partial:")],
        ),
        ("ltcore train model.tune=pa", ["model.tune=partial:"]),
        ("ltcore train x model.weights=", [f"model.weights={w}" for w in ("null", "auto", "default")]),
        ("ltcore train model.name=resnet50 model.weights=a", ["model.weights=auto"]),
        (
            "ltcore train model.name=timm:resnetv2_50x1_bit model.weights=g",
            ["model.weights=goog_distilled_in1k", "model.weights=goog_in21k", "model.weights=goog_in21k_ft_in1k"],
        ),
        ("ltcore train model.name=timm:resnet50.a1_in1k model.weights=a1", ["model.weights=a1_in1k"]),
        ("ltcore train model.name=timm:resnetv2_50d", [f"model.name=timm:resnetv2_50d{w}" for w in TAILS]),
        ("ltcore train model.name=timm:no_such model.weights=x", []),
        ("ltcore train no.such.key=", []),
        ("ltcore tune sweep.sea", ["sweep.search="]),
        ("ltcore tune sweep.search=p", ["sweep.search=pbt"]),
        ("ltcore tune sweep.space.train.optim.lr=l", ["sweep.space.train.optim.lr=log:"]),
        ("ltcore train sweep.sea", []),
        ("ltcore keys train.epo", ["train.epochs"]),
        ("ltcore completion ", ["bash", "zsh", "fish"]),
        ("ltcore evaluate run ", []),
        ("ltcore methods ", []),
    ],
)
def test_what_may_come_next(line: str, found: list[str]) -> None:
    assert after(line) == found


def test_all_that_there_is_is_offered() -> None:
    assert set(COMMANDS) <= set(after("ltcore "))
    words = after("ltcore train ")
    assert set(packaged("recipe")) <= set(words)
    assert {f"{key}=" for key, _ in keys.leaves(keys.run_keys())} <= set(words)
    assert set(packaged("sweep")) == set(after("ltcore tune --sweep "))
    assert after("ltcore tune --") == [word for word in after("ltcore tune -") if word.startswith("--")]
    assert {"--help", "--num-trials", "--dry-run"} <= set(after("ltcore tune --"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself(name: str) -> None:
    assert {"--help", "--debug"} <= set(after(f"ltcore {name} --"))


def test_it_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from ltcore.cli.main import COMMANDS; from ltcore.cli.complete import candidates;"
        "assert candidates(['train', 'cifar100_lt_ce', 'train.optim.schedule='], COMMANDS);"
        "print([m for m in ('torch', 'numpy', 'ray', 'pydantic', 'yaml', 'rich') if m in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - began < 5, "a third of a second on a busy machine"


@pytest.fixture
def path(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``ltcore`` is this checkout."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ltcore"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m ltcore "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


LINES = [
    ("ltcore tra", ["train"]),
    ("ltcore train --engine tr", ["trial", "train"]),
    ("ltcore train --seed 3 train.optim.schedule=c", ["cosine", "cosine_after_warmup", "constant"]),
    ("ltcore tune --search ", ["random", "grid", "tpe", "pbt"]),
]


def test_bash_completes(path: dict[str, str], command: Any, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(command("completion", "bash").out)
    asked = "".join(
        f'COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; _ltcore ltcore; echo "${{COMPREPLY[*]}}"\n'
        for line, _ in LINES
    )
    code = f"source {tmp_path / 'script'}\ncomplete -p ltcore\nIFS=' '\n{asked}"
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, env=path, check=True)
    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert first == "complete -o default -F _ltcore ltcore"
    assert [line.split() for line in rest] == [words for _, words in LINES]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(path: dict[str, str], command: Any, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(command("completion", "fish").out)
    asked = "\n".join(f"complete -C {line!r} | string join ' '" for line, _ in LINES)
    code = f"source {tmp_path / 'script'}\n{asked}"
    done = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, env=path, check=True)
    shown = [[word.rpartition("=")[2] for word in line.split()] for line in done.stdout.splitlines()]
    assert [sorted(words) for words in shown] == [sorted(words) for _, words in LINES]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(path: dict[str, str], command: Any, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(command("completion", "zsh").out)
    fake = "compadd() { while [[ $1 != -a ]]; do shift; done; print -r -- ${(P)2}; }"
    asked = ""
    for line, _ in LINES:
        before, _, current = line.rpartition(" ")
        asked += f"words=({before} '{current}'); CURRENT=$#words; PREFIX='{current}'; _ltcore\n"
    code = f"compdef() {{ :; }}\nsource {tmp_path / 'script'}\n{fake}\n{asked}"
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, env=path, check=True)
    assert done.stderr == ""
    shown = [[word.rpartition("=")[2] for word in line.split()] for line in done.stdout.splitlines() if line.strip()]
    assert shown == [words for _, words in LINES]
