"""Building a benchmark, so that an interruption costs no more than the shards that were open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ltcore.data.datasets.shard_task import SHARDS, Broken
from ltcore.data.datasets.workspace import (
    Bar,
    OnProgress,
    Run,
    finish,
    keep_broken,
    kept_broken,
    refuse_broken,
    workspace,
    write_shards,
)
from ltcore.data.glt.build import Plan, make_plan, manifest
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.pool import Pool
from ltcore.data.glt.sizes import choose_sizes, size_remarks
from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.publish import refuse_occupied
from ltcore.data.shards.remarks import BROKEN

CONSTRUCTION = 3
"""Raised when the same choices would give other shards than before, so that no build continues with older ones."""
WITHOUT_ATTRIBUTE = "without_attribute"
"""Key of the provenance: how many images were left out because nothing says their attribute."""

Discover = Callable[[Pool, Path, Bar], tuple[Pool, Broken]]
"""Gives the images of a pool attributes, with the help of a workspace; returns those that cannot be decoded, too."""


def build(
    pool: Pool,
    choices: GltChoices,
    uri: str,
    run: Run,
    *,
    bar: Bar,
    discover: Discover | None = None,
    max_bad_samples: int = 0,
    progress: OnProgress | None = None,
) -> tuple[Plan, Manifest]:
    """Builds the benchmark at ``uri`` in place of an earlier data set there, or continues an interrupted build of it.

    Args:
        pool: the images.
        choices: sizes and quotas; another choice is another build.
        uri: folder or object-store prefix.
        run: does the tasks.
        bar: shows how far each step is.
        discover: gives the images attributes; None: they have their own.
        max_bad_samples: most images that cannot be decoded and are left out; more are an error that names them.
        progress: told what happens, a line each.

    Raises DataError or ConfigError where the images do not allow what was chosen, or other files are in the way.
    """
    refuse_occupied(uri)
    with workspace(uri, identity_of(pool, choices), progress) as folder:
        broken = kept_broken(folder)
        while True:
            refuse_broken(pool.root.where, broken, max_bad_samples)
            usable, found = pool.without(broken), Broken()
            if discover is not None:
                usable, found = discover(usable, folder, bar)
            if not found:
                labeled, unknown = _with_attribute(usable)
                plan = make_plan(labeled, choose_sizes(labeled, choices), choices)
                if progress:
                    for remark in size_remarks(labeled, plan.sizes):
                        progress(remark)
                with bar("writing", plan.total) as advance:
                    written = write_shards(plan.tasks, folder, uri, run, advance=advance, progress=progress)
                found = written.broken
            if not found:
                break
            broken |= found
            refuse_broken(pool.root.where, broken, max_bad_samples)
            keep_broken(folder, broken)
            if progress:
                progress(f"{pool.name}: choosing again without {len(broken):,} broken images")
        left_out = {BROKEN: {path: problem for path, (_, problem) in sorted(broken.items())}} if broken else {}
        provenance = {**pool.provenance, **left_out, **plan_provenance(plan, choices)}
        if unknown:
            provenance[WITHOUT_ATTRIBUTE] = unknown
        made = finish(folder, uri, partial(manifest, plan, run, written, folder / SHARDS, provenance))
        return plan, made


def identity_of(pool: Pool, choices: GltChoices) -> list[Any]:
    """Returns all that the shards of a benchmark depend on."""
    return [CONSTRUCTION, pool.identity, asdict(choices)]


def _with_attribute(pool: Pool) -> tuple[Pool, int]:
    """Returns the pool with the images and attributes that can be used, and how many images have no attribute."""
    known_n = np.flatnonzero(pool.attribute_ids >= 0)
    used = np.unique(pool.attribute_ids[known_n])
    if len(known_n) == len(pool.items) and len(used) == len(pool.attributes):
        return pool, 0
    items = pool.items.take(known_n)
    kept = replace(
        pool,
        items=items.with_attributes(np.searchsorted(used, items.attributes_N)),
        attributes=tuple(pool.attributes[attribute] for attribute in used),
    )
    return kept, len(pool.items) - len(items)


def plan_provenance(plan: Plan, choices: GltChoices) -> dict[str, Any]:
    """Returns how the images were chosen, for the manifest."""
    sizes = plan.sizes
    by_rank = sorted(plan.counts("train").sum(1).tolist(), reverse=True)
    follows_profile = not choices.class_counts and not sizes.capped
    found = {
        "profile": "given" if choices.class_counts else choices.profile,
        "imbalance_factor": choices.imbalance_factor if follows_profile else round(by_rank[0] / by_rank[-1], 4),
        "largest_class": by_rank[0],
        "attribute_quotas": list(sizes.quotas),
        **({"shortage": choices.shortage} if sizes.capped else {}),
        "train_cbl_per_class": sizes.train_cbl,
        "val_per_class": 0 if sizes.val_C else sizes.val,
        "val_glt_images": sum(sizes.val_C),
        "test_per_class": sizes.test,
        "test_glt_images": sum(sizes.test_glt_C),
        "train_and_train_cbl_share": plan.overlap,
        "attributes_from": _attributes_from(choices),
        "subset_seed": plan.seed,
    }
    return {
        key: value for key, value in found.items() if value != 0 or key in ("subset_seed", "train_and_train_cbl_share")
    }


def _attributes_from(choices: GltChoices) -> dict[str, Any] | str:
    if choices.discovery is not None:
        return {"method": "k-means inside each class", "seed": choices.seed, **asdict(choices.discovery)}
    if choices.attribute_level is not None:
        return f"folder level {choices.attribute_level}"
    return "a file" if choices.attributes_file is not None else "the source"
