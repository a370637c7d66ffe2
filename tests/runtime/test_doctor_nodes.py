"""Nodes that are asked through Ray: answers, slow ones, and the Ray of this process, which is not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.reporting.terminal import Terminal
from ltcore.runtime.cluster import started_here
from ltcore.runtime.doctor import doctor
from ltcore.runtime.doctor.checks import RED

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


def test_a_node_answers_and_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor.examine_nodes(str(tmp_path), "", Terminal())
    assert {c.what for c in found} >= {"ltcore", "storage"}, found
    assert not [c for c in found if c.what == "examination"]
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_answer_is_waited_for_by_name_and_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "SLOW_S", 0.0)
    monkeypatch.setattr(doctor, "ANSWER_S", 0.0)
    silent = [c for c in doctor.examine_nodes(str(tmp_path), "", Terminal()) if c.what == "examination"]
    assert [(c.state, c.found) for c in silent] == [(RED, "no answer within 0 s")]
    assert f"waiting up to 0 s for an answer of {silent[0].where}" in capsys.readouterr().out


def test_the_ray_of_this_process_is_examined_from_here() -> None:
    assert started_here()
