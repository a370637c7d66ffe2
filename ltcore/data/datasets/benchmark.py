"""What ready-made benchmarks have in common: images below a root whose splits are chosen already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import Layout
from ltcore.data.datasets.image_folder import image_folder
from ltcore.data.datasets.image_root import Root
from ltcore.data.shards.manifest import SKIPPED
from ltcore.data.shards.remarks import BROKEN
from ltcore.data.shards.source import Source


def benchmark_source(
    root: Root,
    layout: Layout,
    cfg: DataConfig,
    broken: Mapping[str, str],
    *,
    name: str,
    chosen: Mapping[str, Any],
    shot_rule: str = "rank",
) -> Source:
    """Returns the source of a benchmark: the splits of ``layout`` as they are, whatever ``cfg`` says of selection.

    Args:
        root: reads the images.
        layout: splits, classes and attributes; broken images are not among them.
        cfg: of it, the seed matters here.
        broken: images that were left out, path -> problem, to be named.
        name: of the data set.
        chosen: provenance, how the splits were made.
        shot_rule: how classes are put into shot groups.
    """
    source = image_folder(root, layout, replace(cfg, imbalance_factor=None, val_per_class=0), broken)
    kept = {key: source.provenance[key] for key in (SKIPPED, BROKEN) if key in source.provenance}
    noted = {"source": source.provenance["source"], **kept, **chosen}
    return replace(source, name=name, shot_rule=shot_rule, provenance=noted)
