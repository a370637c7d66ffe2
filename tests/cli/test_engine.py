"""Who writes shards: this process, or Ray where there is much to do and no one has said otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli.engine import RAY_FROM, engine_of
from ltcore.cli.entry import say
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make
from ltcore.data.datasets.workspace import here
from ltcore.errors import ConfigError
from ltcore.runtime import cluster_address, ray_map
from ltcore.training import hardware


@pytest.mark.parametrize(
    ("choice", "images", "cpus", "by_ray"),
    [
        ("auto", RAY_FROM - 1, 8, False),
        ("auto", RAY_FROM, 8, True),
        ("auto", RAY_FROM, 1, False),
        ("inline", RAY_FROM, 8, False),
        ("ray", 1, 1, True),
    ],
)
def test_ray_is_started_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, choice: str, images: int, cpus: int, by_ray: bool
) -> None:
    @contextlib.contextmanager
    def started(*_args: Any, **_options: Any) -> Iterator[Any]:
        yield "ray"

    monkeypatch.setattr(ray_map, "ray_tasks", started)
    monkeypatch.setattr(cluster_address, "cluster_address", lambda: "")
    monkeypatch.setattr(hardware, "allocated_cpus", lambda: cpus)
    with engine_of(choice, say)(images) as run:
        assert run == ("ray" if by_ray else here)


@pytest.mark.parametrize(
    ("choice", "connected", "by_ray"), [("auto", False, False), ("auto", True, True), ("ray", False, True)]
)
def test_a_ray_of_others_is_joined_by_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, choice: str, connected: bool, by_ray: bool
) -> None:
    """Its CPUs may be taken for hours, and it may want a token that this command has no use for."""
    said: list[str] = []
    monkeypatch.setattr(ray_map, "ray_tasks", lambda *_args, **_options: contextlib.nullcontext("ray"))
    monkeypatch.setattr(ray_map, "is_connected", lambda: connected)
    monkeypatch.setattr(cluster_address, "cluster_address", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(hardware, "allocated_cpus", lambda: 8)
    with engine_of(choice, said.append)(RAY_FROM) as run:
        assert run == ("ray" if by_ray else here)
    assert by_ray or "--engine ray would have tasks of the Ray at 10.0.0.1:6379 write them" in said[0]


@pytest.mark.parametrize("choice", ["auto", "ray"])
def test_a_ray_that_does_not_start_is_needed_by_who_asks_for_it(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    @contextlib.contextmanager
    def broken(*_args: Any, **_options: Any) -> Iterator[Any]:
        raise ConfigError("Ray did not start on this machine.")
        yield

    said: list[str] = []
    monkeypatch.setattr(ray_map, "ray_tasks", broken)
    monkeypatch.setattr(cluster_address, "cluster_address", lambda: "")
    monkeypatch.setattr(hardware, "allocated_cpus", lambda: 8)
    with contextlib.ExitStack() as stack:
        if choice == "ray":
            stack.enter_context(pytest.raises(ConfigError, match="did not start"))
        with engine_of(choice, said.append)(RAY_FROM) as run:
            assert run is here
    assert said == (
        [] if choice == "ray" else ["Ray did not start on this machine. So this process writes all shards."]
    )


def test_a_ray_whose_token_is_missing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise ConfigError("The Ray here wants a token.")

    said: list[str] = []
    monkeypatch.setattr(ray_map, "is_connected", lambda: False)
    monkeypatch.setattr(cluster_address, "cluster_address", unknown)
    monkeypatch.setattr(hardware, "allocated_cpus", lambda: 8)
    with engine_of("auto", said.append)(RAY_FROM) as run:
        assert run is here
    assert said == ["The Ray here wants a token. So this process writes all shards."]


@pytest.mark.parametrize("choice", ["auto", "inline"])
def test_images_that_one_process_has_to_read_are_left_to_this_one(choice: str) -> None:
    with engine_of(choice, say)(None) as run:
        assert run is here


def test_ray_is_refused_where_it_would_have_nothing_to_do(tmp_path: Path) -> None:
    cfg = DataConfig(uri="digits-glt")
    with pytest.raises(ConfigError, match="--engine ray has no effect on images that do not lie in files of their own"):
        make(cfg, str(tmp_path / "out"), engine=engine_of("ray", say))
    assert not (tmp_path / "out").exists()
    assert make(cfg, str(tmp_path / "out"), engine=engine_of("auto", say)).split("train").shards
