"""Who writes shards: this process, or Ray where there is much to do and no one has said otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from ltcore.cli.engine import RAY_FROM, engine_of
from ltcore.cli.entry import say
from ltcore.data.datasets.workspace import here
from ltcore.runtime import ray_map
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
    monkeypatch.setattr(hardware, "allocated_cpus", lambda: cpus)
    with engine_of(choice, say)(images) as run:
        assert run == ("ray" if by_ray else here)
