"""Nodes that are asked through Ray: answers, slow ones, and the Ray of this process, which is not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from ltcore.reporting.terminal import Terminal
from ltcore.runtime.cluster import started_here
from ltcore.runtime.doctor import doctor
from ltcore.runtime.doctor.checks import RED, YELLOW

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


@pytest.mark.parametrize(("stays", "state"), [(False, YELLOW), (True, RED)])
def test_a_node_that_leaves_while_it_is_examined_refuses_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool, state: str
) -> None:
    own, gone = ray.nodes()[0], {"Alive": True, "NodeID": "1" * 56, "NodeManagerAddress": "10.0.0.9", "Resources": {}}
    asked: list[int] = []

    def nodes() -> list[dict[str, Any]]:
        asked.append(1)
        return [own, {**gone, "Alive": stays or len(asked) == 1}]

    monkeypatch.setattr(ray, "nodes", nodes)
    found = [c for c in doctor.examine_nodes(str(tmp_path), "", Terminal()) if c.what == "examination"]
    assert [(c.where, c.state) for c in found] == [("10.0.0.9", state)]


def test_a_node_that_is_drained_is_not_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"Alive": True, "NodeID": "1" * 56, "NodeManagerAddress": "10.0.0.9", "Resources": {}}
    own = ray.nodes()[0]
    monkeypatch.setattr(ray, "nodes", lambda: [own, gone])
    monkeypatch.setattr(doctor, "leaving_nodes", lambda: {"1" * 56: 0})
    found = doctor.examine_nodes(str(tmp_path), "", Terminal())
    assert found and "10.0.0.9" not in {c.where for c in found}


def test_the_ray_of_this_process_is_examined_from_here() -> None:
    assert started_here()
