"""What a run needs before anything is placed: where its results go, and the shards that it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltcore.cli.engine import engine_of
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare, selection_remarks
from ltcore.data.datasets.registry import find
from ltcore.data.shards.histogram import class_histogram
from ltcore.data.shards.manifest import Manifest, read_manifest
from ltcore.errors import ConfigError
from ltcore.storage import is_local, join, local_path, refuse_read_only
from ltcore.uris import check_uris

if TYPE_CHECKING:
    from ltcore.config.schema import RunConfig

DEFAULT_STORAGE = Path.home() / "ltcore-runs"


def storage_root(storage: str | None) -> str:
    """Returns the given storage or the default one, absolute because workers change directory.

    Raises ConfigError for a URI with a password.
    """
    root = storage or str(DEFAULT_STORAGE)
    try:
        check_uris(**{"--storage (or LTCORE_STORAGE)": root})
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    refuse_read_only(root)
    return str(Path(root).expanduser().resolve()) if is_local(root) and "://" not in root else root.rstrip("/")


def prepare_data(
    data: DataConfig, root: str, say: Callable[[str], None], *, fresh: bool = False, engine: str = "auto"
) -> str:
    """Returns the URI of the shards, made where there are none.

    They go beside the results where these are in an object store, which every node reaches, else into the cache folder.
    ``fresh`` makes generated data again, and no other. ``engine`` is one of ``cli.engine``.
    """
    place = None if is_local(root) else join(root, "datasets")
    is_remade = fresh and find(data.uri).is_generated
    uri = prepare(data, fresh=is_remade, progress=say, root=place, engine=engine_of(engine, say))
    return str(local_path(uri).absolute()) if is_local(uri) else uri  # workers change directory


def prepare_run(
    cfg: RunConfig, root: str, say: Callable[[str], None], *, fresh: bool = False, engine: str = "auto"
) -> tuple[str, Manifest]:
    """Returns URI and manifest of a run's shards, after remarks on what the user should know of them.

    Raises ConfigError as ``selection_remarks`` does.
    """
    uri = prepare_data(cfg.data, root, say, fresh=fresh, engine=engine)
    manifest = read_manifest(uri)
    # the factor of stage 2 only repeats that of stage 1
    chosen = cfg.data if cfg.stage2 is None else replace(cfg.data, imbalance_factor=None)
    for remark in selection_remarks(chosen, manifest):
        say(remark)
    return uri, manifest


def show_classes(cfg: RunConfig, manifest: Manifest, say: Callable[[str], None]) -> None:
    """Says how many images the classes have that a run trains on, and what measures it."""
    for line in class_histogram(manifest, cfg.data.train_split):
        say(line)
