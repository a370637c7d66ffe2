"""Writing a benchmark so that an interruption costs no more than the shards that were open."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from ltcore import storage
from ltcore.data.datasets.broken import broken_images
from ltcore.data.glt.build import Broken, Plan, ShardTask, Written, make_plan, manifest
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.kept import keep, kept
from ltcore.data.glt.pool import Pool
from ltcore.data.glt.sizes import choose_sizes, size_remarks
from ltcore.data.shards.manifest import Manifest, write_manifest
from ltcore.data.shards.publish import publish, refuse_occupied
from ltcore.data.shards.remarks import BROKEN
from ltcore.errors import BadImageError

CONSTRUCTION = 2
"""Raised when the same choices would give other shards than before, so that no build continues with older ones."""
BROKEN_FILE = "broken.json"
WITHOUT_ATTRIBUTE = "without_attribute"
"""Key of the provenance: how many images were left out because nothing says their attribute."""
PARTS = ("shards", "records", "attributes")
"""Folders of a workspace."""

T = TypeVar("T")
R = TypeVar("R")
OnProgress = Callable[[str], None]


class Run(Protocol):
    """Does tasks, here or in other processes, and yields each with its result, in any order.

    It takes no more tasks ahead than are worked on soon.
    """

    def __call__(self, tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]: ...


def here(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
    """Does the tasks in this process, one after the other."""
    for task in tasks:
        yield task, do(task)


@contextlib.contextmanager
def workspace(uri: str, pool: Pool, choices: GltChoices, progress: OnProgress | None = None) -> Iterator[Path]:
    """Yields the folder of one build, which stays when the block fails, so that the same choices continue there.

    It lies beside a local target, on whose disk the shards have to be, and else in the cache folder. No two processes
    work in it at the same time: ``progress`` is told where this one has to wait for another.
    """

    def say() -> None:
        if progress:
            progress(f"another process builds {uri} with the same choices; this one waits until it has ended")

    words: Any = [CONSTRUCTION, pa.__version__, uri, pool.identity, asdict(choices)]
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
    cache = storage.cache_root() / "building"
    target = storage.local_path(uri).absolute().resolve() if storage.is_local(uri) else cache / "target"
    folder = target.with_name(f".{target.name}.building-{digest}")
    with storage.locked(cache / f"{digest}.lock", say):
        for name in PARTS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except BaseException:
            if not any(any((folder / name).iterdir()) for name in PARTS[1:]):  # nothing that could be continued
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def write_shards(
    plan: Plan, folder: Path, run: Run, *, advance: Callable[[int], None], progress: OnProgress | None = None
) -> Written:
    """Writes the shards of a plan into a workspace, less those that lie there whole.

    Args:
        plan: what is in which shard.
        folder: the workspace.
        run: does the tasks.
        advance: told how many more images are written, or were.
        progress: told how much of an earlier build is used.
    """
    written, there = Written(), set[Path]()
    for task in plan.tasks(folder):
        if shard := task.finished():
            written.add(task, shard, {})
            there.add(task.place)
            advance(shard.count)
    if there and progress:
        progress(f"continuing: {len(there):,} shards of an interrupted build are whole")
    for name in {entry.name for entry in (folder / "shards").iterdir()} - written.files:
        (folder / "shards" / name).unlink()
    waiting = (task for task in plan.tasks(folder) if task.place not in there)
    for task, (shard, broken) in run(waiting, ShardTask.__call__):
        written.add(task, shard, broken)
        advance(len(task.items))
    return written


Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how many of so many images are done, under a name; what it yields is told how many more are."""
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
    with workspace(uri, pool, choices, progress) as folder:
        broken: Broken = {path: (text[0], text[1]) for path, text in (kept(folder / BROKEN_FILE, "") or {}).items()}
        while True:
            refuse_broken(pool, broken, max_bad_samples)
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
                    written = write_shards(plan, folder, run, advance=advance, progress=progress)
                found = written.broken
            if not found:
                break
            broken |= found
            refuse_broken(pool, broken, max_bad_samples)
            keep(folder / BROKEN_FILE, "", broken)
            if progress:
                progress(f"{pool.name}: choosing again without {len(broken):,} broken images")
        left_out = {BROKEN: {path: problem for path, (_, problem) in sorted(broken.items())}} if broken else {}
        provenance = {**pool.provenance, **left_out, **plan_provenance(plan, choices)}
        if unknown:
            provenance[WITHOUT_ATTRIBUTE] = unknown
        return plan, finish(plan, written, folder, uri, provenance)


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
    by_rank = sorted(sizes.train_C, reverse=True)
    found = {
        "profile": "given" if choices.class_counts else choices.profile,
        "imbalance_factor": round(by_rank[0] / by_rank[-1], 4) if choices.class_counts else choices.imbalance_factor,
        "largest_class": by_rank[0],
        "attribute_quotas": list(sizes.quotas),
        "train_cbl_per_class": sizes.train_cbl,
        "val_per_class": sizes.val,
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


def refuse_broken(pool: Pool, broken: Broken, most: int) -> None:
    """Raises BrokenImagesError, which names them, where more images than allowed cannot be decoded."""
    if len(broken) > most:
        raise broken_images(pool.root.where, {path: BadImageError(*texts) for path, texts in broken.items()})


def finish(plan: Plan, written: Written, folder: Path, uri: str, provenance: Mapping[str, Any]) -> Manifest:
    """Puts the finished data set from the workspace to its place, and returns its manifest."""
    made = manifest(plan, written, folder / "shards", provenance)
    write_manifest(made, str(folder / "shards"))
    publish(folder / "shards", uri)
    return made
