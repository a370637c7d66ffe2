"""Plugins in this process: installed for one test, and forgotten after it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltcore import callbacks
from ltcore.config import keys, reader, validate
from ltcore.data.augment import config, policies
from ltcore.data.datasets import registry as datasets
from ltcore.data.loading import class_sampling
from ltcore.evaluation import plugged as metrics
from ltcore.models import registry as models
from ltcore.objective import registry as objectives
from ltcore.plugins import distributions, loading, parts, source
from ltcore.plugins.aside import ASIDE
from ltcore.plugins.generated import COPIED

EXAMPLE = Path(__file__).parent / "example_parts"
SOURCES = EXAMPLE / "src"
_TABLES: tuple[dict[Any, Any], ...] = (
    objectives.BASES,
    objectives.TERMS,
    objectives.STAGE2,
    models.MODELS,
    datasets.DATASETS,
    callbacks.CALLBACKS,
    metrics.PLUGGED,
    policies.AUGMENTS,
    class_sampling.SAMPLINGS,
    loading._used,
    loading._loaded,
    loading._installed,
    parts.NOTED,
    ASIDE,
    sys.modules,
)
_SECTIONS: tuple[type, ...] = (
    objectives.BaseOptions,
    objectives.Terms,
    objectives.Stage2Options,
    callbacks.Callbacks,
    config.AugmentOptions,
    class_sampling.SamplingOptions,
    models.ModelOptions,
    metrics.MetricOptions,
)
_CACHES = (
    source.parse,
    distributions.version_of,
    distributions._entry_points,
    reader.Module.read,
    keys._run_keys,
    keys._methods,
    validate._adapter,
    validate._shape_with,
)


def install(site: Path, version: str = "0.3") -> Path:
    """Puts the example into a folder as ``pip install --target`` does. Returns the folder."""
    shutil.copytree(SOURCES / "example_parts", site / "example_parts", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"example_parts-{version}.dist-info"
    info.mkdir()
    groups = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: example-parts\nVersion: {version}\n")
    files = sorted(path.relative_to(site) for path in site.rglob("*.py"))
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    return site


@contextlib.contextmanager
def forgotten_after() -> Iterator[None]:
    """Puts the registries and all that is remembered of plugins back to where they were."""
    tables = [dict(table) for table in _TABLES]
    sections = [{name: section.__dict__[name] for name in COPIED} for section in _SECTIONS]
    given, path = set(loading._given), list(sys.path)
    _clear()
    try:
        yield
    finally:
        for table, before in zip(_TABLES, tables, strict=True):
            added = [key for key in table if key not in before]
            if table is sys.modules:
                for key in added:
                    if key.partition(".")[0] not in ("torch", "numpy") and _is_of_test(table[key]):
                        del table[key]
                continue
            table.clear()
            table.update(before)
        for section, attributes in zip(_SECTIONS, sections, strict=True):
            for name in set(section.__dict__["__dataclass_fields__"]) - set(attributes["__dataclass_fields__"]):
                delattr(section, name)
            for name, value in attributes.items():
                setattr(section, name, value)
        loading._given.clear()
        loading._given.update(given)
        sys.path[:] = path
        _clear()


def _is_of_test(module: Any) -> bool:
    return "site-packages" not in str(getattr(module, "__file__", None) or "site-packages") and not str(
        module.__name__
    ).startswith(("ltcore", "tests"))


def _clear() -> None:
    for cache in _CACHES:
        cache.cache_clear()
