"""Commands of ``pipelines`` and of ``ltcore`` inside this process: importing torch takes longer than their work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ltcore.cli import main
from ltcore.cli.entry import run_main

Command = Callable[..., SimpleNamespace]
"""(name, words) -> code, out and err of the command that ``main.COMMANDS`` has under that name."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command as the last line of its script does."""
    for name in ("LTCORE_DATA", "LTCORE_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()

    def call(name: str, *words: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_main(lambda: main.COMMANDS[name](None, None, None))
        torch.set_num_threads(threads)
        return SimpleNamespace(code=end.value.code, **capsys.readouterr()._asdict())

    return call
