"""Everything public in the layers that compute says what it is; an override may leave that to what it overrides."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import ltcore.evaluation
import ltcore.models
import ltcore.objective
import ltcore.training

PACKAGES = (ltcore.objective, ltcore.models, ltcore.evaluation, ltcore.training)


def modules() -> Iterator[str]:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.ispkg:
                yield found.name


def public(owner: ModuleType | type, module: str) -> Iterator[tuple[str, Any]]:
    """(qualified name, object) of what ``module`` itself defines under ``owner``, classes before their members."""
    for name, value in vars(owner).items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            yield value.__qualname__, value
            yield from public(value, module)
        elif inspect.isfunction(value) and "<" not in value.__qualname__:
            yield value.__qualname__, getattr(owner, name)


@pytest.mark.parametrize("module", modules())
def test_public_names_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)
    assert (loaded.__doc__ or "").strip(), f"{module} does not say what it is"
    bare = [name for name, value in public(loaded, module) if not (inspect.getdoc(value) or "").strip()]
    assert not bare, f"{module}: no docstring for {', '.join(bare)}"
