"""What makes a node unfit, what is said about it, and that nothing is left behind or given away."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.errors import ConfigError, DataError
from ltcore.runtime.doctor import checks as doctor
from ltcore.runtime.doctor import probe
from tests.tars import pictures, write_tars

RESOURCES = {"CPU": 8.0, "GPU": 1.0, "memory": 32.0 * 2**30}


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    """A node that is fit."""
    marker = probe.leave_marker(str(tmp_path))
    found = probe.examine(str(tmp_path), str(tmp_path), marker, shared=True)
    probe.remove_marker(str(tmp_path), marker)
    disks = dict.fromkeys(("disk_bytes", "cache_bytes", "storage_bytes"), 2**36)
    return {**found, **disks, "gpus": 1, "shm_bytes": 2**33, "files": 65536}


def test_a_fit_node_is_green_and_nothing_is_left_on_the_storage(report: dict[str, Any], tmp_path: Path) -> None:
    found = doctor.checks(report, "10.0.0.2", report, RESOURCES)
    assert doctor.verdict(found)[0] == doctor.GREEN
    assert not list(tmp_path.iterdir())
    doctor.refuse_red(found)


def test_markers_of_killed_commands_go_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, now = str(tmp_path), time.time()
    (tmp_path / "run").mkdir()
    for age_s in (2 * 86400, 7 * 3600):
        monkeypatch.setattr(time, "time", lambda age_s=age_s: now - age_s)
        marker = probe.leave_marker(root)
        (tmp_path / f"{marker}-answer").touch()
        (tmp_path / f"{marker}-0123").mkdir()
        (tmp_path / f"{marker}-0123" / "probe").touch()
    monkeypatch.undo()
    last = probe.leave_marker(root)
    left = {marker, f"{marker}-answer", f"{marker}-0123", last}
    assert {path.name for path in tmp_path.iterdir()} == {"run", *left}


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"code": "0.1.0+00000000"}, "ltcore", "`ray up` again"),
        ({"versions": {"ray": "2.59.0", "torch": "2.11.0", "python": "3.12.1"}}, "ray", "on the node that drives"),
        ({"auth": "token 0123abcd"}, "authentication", "set RAY_AUTH_MODE on every node"),
        ({"shm_bytes": 64 * 2**20}, "/dev/shm", "--shm-size"),
        ({"disk_bytes": 2**20}, "disk", "larger volume"),
        ({"cache_bytes": 2**20}, "cache disk", "LTCORE_CACHE"),
        ({"cache": "/cache cannot be written: Permission denied"}, "cache", "LTCORE_CACHE"),
        ({"storage": "s3://b/x cannot be written: ACCESS_DENIED"}, "storage", "instance profile"),
        ({"data": "s3://b/shards does not exist"}, "data", "LTCORE_DATA"),
    ],
)
def test_what_is_red_is_named_with_what_to_do(
    report: dict[str, Any], change: dict[str, Any], what: str, fix: str
) -> None:
    found = doctor.checks({**copy.deepcopy(report), **change}, "10.0.0.2", report, RESOURCES)
    red = [c for c in found if c.state == doctor.RED]
    assert what in {c.what for c in red}
    assert all(c.fix for c in red)
    with pytest.raises(ConfigError, match=r"10\.0\.0\.2: ") as caught:
        doctor.refuse_red(found)
    assert fix in str(caught.value)


@pytest.mark.parametrize("change", [{"files": 1024}, {"gpus": 0}, {"storage_bytes": 2**20}])
def test_what_may_still_work_is_a_warning(report: dict[str, Any], change: dict[str, Any]) -> None:
    found = doctor.checks({**report, **change}, "10.0.0.2", report, RESOURCES)
    assert doctor.verdict(found)[0] == doctor.YELLOW
    doctor.refuse_red(found)


def test_a_storage_of_its_own_is_seen(tmp_path: Path) -> None:
    """Two machines with the same path and different disks: the driver's marker is not there."""
    said = probe.examine(str(tmp_path), "", "marker-of-the-driver", shared=True)["storage"]
    assert "another place here than on the node that drives" in said


def test_a_storage_that_cannot_be_written_is_said_at_once() -> None:
    with pytest.raises(DataError, match="cannot be written"):
        probe.leave_marker("/proc/nowhere")


def test_a_token_is_compared_but_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("a-secret-token\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    first = probe.examine(str(tmp_path), "", "x", shared=False)["auth"]
    assert first.startswith("token ") and "secret" not in first
    file.write_text("another")
    assert probe.examine(str(tmp_path), "", "x", shared=False)["auth"] != first
    file.unlink()
    assert "there is no token" in probe.examine(str(tmp_path), "", "x", shared=False)["auth"]


@pytest.mark.parametrize(("mode", "state"), [(0o600, doctor.GREEN), (0o400, doctor.GREEN), (0o644, doctor.YELLOW)])
def test_a_token_that_others_can_read_is_a_warning(
    report: dict[str, Any], mode: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself makes the file readable for all."""
    file = tmp_path / "token"
    file.write_text("a-secret-token")
    file.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    read = {"token_mode": probe.examine(str(tmp_path), "", "x", shared=False)["token_mode"]}
    (line,) = [c for c in doctor.checks({**report, **read}, "a", report, RESOURCES) if c.what == "token file"]
    assert (line.found, line.state) == (f"mode {mode:o}", state)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "in memory")
    assert probe.examine(str(tmp_path), "", "x", shared=False)["token_mode"] == ""


def test_tars_that_a_node_does_not_reach_are_named(tmp_path: Path) -> None:
    write_tars(tmp_path / "train-%d.tar", pictures(12))
    uri = prepare(DataConfig(uri=str(tmp_path)))
    assert probe.examine(str(tmp_path), uri, "x", shared=False)["data"] == "reachable"
    (tmp_path / "train-0.tar").rename(tmp_path / "gone")
    assert "train-0.tar does not exist" in probe.examine(str(tmp_path), uri, "x", shared=False)["data"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"list_files": lambda uri: []}, "not listed afterwards"),
        ({"read_bytes": lambda uri: b"1"}, "old content"),
        ({"remove": lambda uri: None}, "still listed (probe)"),
    ],
)
def test_a_storage_that_keeps_no_promise_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any], said: str
) -> None:
    assert probe._keeps_promises(str(tmp_path / "well")) == "" and not list(tmp_path.iterdir())
    for name, act in broken.items():
        monkeypatch.setattr(probe.storage, name, act)
    assert said in probe._keeps_promises(str(tmp_path / "x"))
