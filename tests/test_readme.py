"""The README's Python runs as it stands there, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.paths import ROOT
from tests.training.runs import run, tiny_run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_is_an_example_of_a_model_and_of_a_loss() -> None:
    assert [("ltcore.load" in b, "Criterion" in b) for b in BLOCKS] == [(True, False), (False, True)]


def test_a_trained_model_predicts(tiny_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    Image.new("RGB", (20, 16), (200, 10, 10)).save(tmp_path / "image.png")
    code = BLOCKS[0].replace("RUN_DIRECTORY", str(tmp_path / "run")).replace("IMAGE_FILE", str(tmp_path / "image.png"))
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"(ant|bee|cat|dog): [01]\.\d\d\n", capsys.readouterr().out)


def test_a_loss_works_in_a_loop_of_ones_own() -> None:
    names: dict[str, object] = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    parts = names["criterion"].parts  # type: ignore[attr-defined]
    assert set(parts) == {"base", "dro", "dro_excess"}
    assert parts["dro"] > 0, "the centroids of the first epochs were published"


def test_every_script_it_names_exists() -> None:
    for script in set(re.findall(r"pipelines/(\w+\.py)", README)):
        assert (ROOT / "pipelines" / script).exists(), script


def test_it_is_two_pages_long() -> None:
    prose = [line for line in README.splitlines() if not line.startswith("|")]
    assert len(prose) < 180, "two pages beside their tables; what is longer belongs into docstrings and --help"
