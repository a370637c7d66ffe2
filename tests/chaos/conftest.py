"""The data that is trained on, and what the sweep and the run come to where nothing disturbs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import outcome, place
from tests.chaos.sweeps import (
    driven_words,
    group_words,
    halving_words,
    long_words,
    run_words,
    sweep_words,
    write_shards,
)


@pytest.fixture(scope="session")
def struck_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of small shards with a balanced training split beside the long-tailed one."""
    uri = tmp_path_factory.mktemp("struck") / "shards"
    write_shards(uri)
    return str(uri)


@pytest.fixture(scope="session")
def undisturbed_sweep(struck_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sweep comes to."""
    return _undisturbed("tune_lpa.py", sweep_words, struck_shards, tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="session")
def undisturbed_run(struck_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to."""
    return _undisturbed("train.py", run_words, struck_shards, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def undisturbed_group(struck_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to with two workers."""
    return _undisturbed("train.py", group_words, struck_shards, tmp_path_factory.mktemp("group"))


@pytest.fixture(scope="session")
def undisturbed_halving(struck_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sweep comes to that has a rung."""
    found = _undisturbed("tune_lpa.py", halving_words, struck_shards, tmp_path_factory.mktemp("halving"))
    assert [sum(trial["goes_on"] for trial in rung["trials"]) for rung in found["rungs"]] == [3]
    return found


@pytest.fixture(scope="session")
def undisturbed_driven(struck_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sweep comes to of which each trial is a group with a driver."""
    return _undisturbed("tune_lpa.py", driven_words, struck_shards, tmp_path_factory.mktemp("driven"))


@pytest.fixture(scope="session")
def undisturbed_long(struck_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the long run comes to."""
    return _undisturbed("train.py", long_words, struck_shards, tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="session")
def undisturbed(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Returns what a work comes to, "sweep", "halving", "run", "group" or "long", computed when it is asked for first."""
    return lambda work: request.getfixturevalue(f"undisturbed_{work}")


def _undisturbed(script: str, words: Any, shards: str, folder: Path) -> dict[str, Any]:
    with place(script, words(shards, folder), "small", folder) as where:
        where.finish()
        return outcome(where)
