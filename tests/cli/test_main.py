"""``python -m ltcore``: what it prints, and that describing itself needs neither torch nor Ray."""

import json
import subprocess
import sys

import pytest
import yaml

from ltcore.cli import describe as main
from ltcore.cli.main import COMMANDS
from ltcore.config.recipes import packaged
from ltcore.errors import ConfigError
from ltcore.models.tune import PARTIAL, TUNES
from ltcore.objective.registry import BASES, STAGE2, TERMS


def run(*argv, code=0):
    done = subprocess.run([sys.executable, "-m", "ltcore", *argv], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_methods_names_every_row_with_its_paper(capsys):
    main.print_methods()
    text = capsys.readouterr().out
    for name, row in [*BASES.items(), *TERMS.items(), *STAGE2.items()]:
        assert name in text and row.summary in text and row.paper in text
    networks = text[text.index("Networks (model.name)\n") : text.index("\nData (data.uri)\n")].splitlines()
    assert networks[-3].split()[:5] == ["timm:NAME", "any", "network", "of", "timm,"]
    assert networks[-2:] == [
        "What of a network is trained (model.tune)",
        f"  {', '.join(TUNES)}, {PARTIAL}K (ltcore keys model.tune)",
    ]


def test_recipes_prints_name_and_header(capsys):
    main.print_recipes()
    text = capsys.readouterr().out
    for kind in ("recipe", "sweep"):
        assert all(f"\n  {name}\n" in text for name in packaged(kind))
    assert "python pipelines/tune_lpa.py" in text


def test_keys_prints_key_default_type_and_meaning(capsys):
    main.print_keys("train.optim.lr")
    assert capsys.readouterr().out.startswith("train.optim.lr = 0.1    (float)\n    Peak learning rate")
    main.print_keys("milestones")
    assert "train.optim.milestones = 0.8,0.9    (tuple[float, ...])" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"keys nothing-like-it: no key matches"):
        main.print_keys("nothing-like-it")
    with pytest.raises(ConfigError, match=r"keys modle.nme: no key matches. Did you mean model.name"):
        main.print_keys("modle.nme")


def test_show_prints_yaml():
    tree = yaml.safe_load(run("show", "cifar100_lt_dro", "objective.terms.dro.radius=0.25"))
    assert tree["objective"]["terms"]["dro"]["radius"] == 0.25


def test_errors_are_one_line_with_exit_code_2():
    assert run("show", "cifar100_lt_cee", code=2).startswith("error: recipe='cifar100_lt_cee' is unknown. Did you mean")
    assert run("show", "cifar100_lt_ce", "lr=1", code=2).count("\n") == 1
    assert "which recipe?" in run("show", "a=1", code=2)


def test_check_runs_linter_types_and_tests_and_reports_a_failure(monkeypatch, tmp_path):
    ran = []

    def fake(command, cwd, check):
        ran.append((command[2], cwd))
        return subprocess.CompletedProcess(command, int(command[2] == "mypy"))

    monkeypatch.setattr(main.subprocess, "run", fake)
    assert main.check() == 1
    assert [tool for tool, _ in ran] == ["ruff", "ruff", "mypy", "pytest"]
    monkeypatch.setattr(main.keys, "PACKAGE", tmp_path / "ltcore")
    with pytest.raises(ConfigError, match="check needs a source checkout"):
        main.check()


def test_help_of_every_command_is_there_at_once():
    """In one process, as the console script calls them; what one of them imports would still be there at the end."""
    code = """
import contextlib, io, json, sys, time
from ltcore.cli import main
said, seconds = {}, {}
for name in main.COMMANDS:
    sys.argv, out, began = ["ltcore", name, "--help"], io.StringIO(), time.monotonic()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
        main.main()
    said[name], seconds[name] = out.getvalue(), time.monotonic() - began
heavy = [m for m in ("torch", "numpy", "ray", "wandb", "pyarrow", "pydantic", "rich") if m in sys.modules]
print(json.dumps([said, max(seconds.values()), heavy]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, slowest, heavy = json.loads(done.stdout)
    assert heavy == [] and slowest < 1
    for name, command in COMMANDS.items():
        assert said[name].startswith(f"usage: ltcore {name} ")
        assert command.__doc__ in " ".join(said[name].split())


def test_help_lists_every_command_and_a_wrong_name_is_answered_with_those_that_exist():
    listed = run("--help")
    assert all(f"\n  {name} " in listed and command.__doc__ in listed for name, command in COMMANDS.items())
    refused = run("trian", code=2)
    assert "invalid choice: 'trian'" in refused and all(f"'{name}'" in refused for name in COMMANDS)
    assert run(code=2).endswith(listed[-200:]), "without a command, help is what it says"


@pytest.mark.parametrize("command", ["methods", "recipes", "keys", "show cifar100_lt_lpa_dro_ifl"])
def test_describing_itself_imports_nothing_heavy(command):
    code = f"""
import importlib, sys
sys.argv = ["ltcore", *{command.split()!r}]
assert importlib.import_module("ltcore.cli.main").main() == 0
print([m for m in ("torch", "numpy", "ray", "wandb", "pyarrow") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
