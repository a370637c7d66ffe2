"""Writing a data set shard by shard, so that an interruption costs no more than the shards that were open."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ltcore import storage
from ltcore.data.datasets.broken import BrokenImagesError, broken_images
from ltcore.data.datasets.shard_task import RECORDS, SHARDS, Broken, ShardTask, Written, as_storage_error
from ltcore.data.shards.kept import keep, kept
from ltcore.data.shards.manifest import Manifest, write_manifest
from ltcore.data.shards.publish import publish
from ltcore.errors import BadImageError
from ltcore.owned_folder import abandoned, enter
from ltcore.retry import retrying

KEPT_S = 7 * 24 * 3600.0
"""How long what an interrupted build left waits for the same command; then the next build beside it removes it."""
_BROKEN_FILE = "broken.json"
_MARK, _GONE = ".building-", ".gone"

T = TypeVar("T")
R = TypeVar("R")
OnProgress = Callable[[str], None]
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how many of so many images are done, under a name; what it yields is told how many more are."""


class Run(Protocol):
    """Does tasks, here or in other processes, and yields each with its result, in any order.

    It takes no more tasks ahead than are worked on soon.
    """

    def __call__(self, tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]: ...


def here(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
    """Does the tasks in this process, one after the other."""
    for task in tasks:
        yield task, do(task)


Engine = Callable[[int | None], AbstractContextManager[Run]]
"""Starts what does the tasks for so many images, and ends it; None: there are no tasks, as one process has to read them all."""


@contextlib.contextmanager
def alone(_num_images: int | None) -> Iterator[Run]:
    """Leaves all tasks to this process."""
    yield here


@contextlib.contextmanager
def workspace(uri: str, identity: Any, progress: OnProgress | None = None) -> Iterator[Path]:
    """Yields the folder of one build, which stays when the block fails, so that the same command continues there.

    It lies beside a local target, on whose disk the shards have to be, and else in the cache folder. No two processes
    work in it at the same time: ``progress`` is told where this one has to wait for another. ``identity`` is all that the
    shards depend on, as far as json can hold it. Raises StorageError where its disk cannot be written.
    """

    def say() -> None:
        if progress:
            progress(f"another process builds {uri} with the same choices; this one waits until it has ended")

    versions = [importlib.metadata.version(name) for name in ("pyarrow", "pillow", "webdataset")]
    digest = hashlib.sha256(json.dumps([versions, uri, identity]).encode()).hexdigest()[:16]
    cache = storage.cache_folder("building")
    target = storage.local_path(uri).absolute().resolve() if storage.is_local(uri) else cache / "target"
    folder = target.with_name(f".{target.name}{_MARK}{digest}")
    # of this machine, as the disk of the target may have no locks
    with storage.locked_in_cache(cache / f"{digest}.lock", say):
        _remove_old(folder.parent)
        done = False
        with as_storage_error(uri):
            owned = enter(folder, partial(_make, folder), say)
        try:
            yield folder
            done = True
        finally:
            is_useful = not done and any(folder.rglob("*.json"))  # which all that could be continued with has
            gone = [] if is_useful else _moved_away(folder)
            if owned is not None:
                owned.release(keep=True)
            _remove(gone)


def _make(folder: Path) -> None:
    for name in (SHARDS, RECORDS):
        retrying(storage.disk_of(folder), partial((folder / name).mkdir, parents=True, exist_ok=True))


def _remove_old(parent: Path) -> None:
    """Removes what builds left that nobody has continued for long."""
    gone = list[Path]()
    for folder in abandoned(parent, f".*{_MARK}*"):
        if _is_old(folder):
            gone += _moved_away(folder)
    _remove([*gone, *filter(_is_old, parent.glob(f".*{_MARK}*{_GONE}"))])  # also by processes that were killed at it


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > KEPT_S
    except OSError:  # it goes right now
        return False


def _moved_away(folder: Path) -> list[Path]:
    """Gives a workspace a name under which nobody waits for it: whoever waits makes one of its own at once."""
    with contextlib.suppress(OSError):
        return [folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex}{_GONE}"))]
    return []


def _remove(gone: list[Path]) -> None:
    """Removes workspaces that were moved away, once their lock files are closed: a network file system keeps open ones."""
    for folder in gone:
        shutil.rmtree(folder, ignore_errors=True)


def write_shards(
    tasks: Callable[[Path, str], Iterable[ShardTask]],
    folder: Path,
    uri: str,
    run: Run,
    *,
    advance: Callable[[int], None],
    progress: OnProgress | None = None,
) -> Written:
    """Writes shards into a workspace, less those that lie there whole.

    Args:
        tasks: yields all shards for a workspace and what it is of, the same ones each time.
        folder: the workspace.
        uri: where the data set will be.
        run: does the tasks.
        advance: told how many more images are written, or were.
        progress: told how much of an earlier build is used.
    """
    written, there = Written(), set[Path]()
    for task in tasks(folder, uri):
        if shard := task.finished():
            written.add(task, shard, {})
            there.add(task.place)
            advance(shard.count)
    if there and progress:
        progress(f"continuing: {len(there):,} shards of an interrupted build are whole")
    for name in {entry.name for entry in (folder / SHARDS).iterdir()} - written.files:
        (folder / SHARDS / name).unlink()
    waiting = (task for task in tasks(folder, uri) if task.place not in there)
    threads = None if run is here else 1  # where processes share the CPUs, each has one of them
    for task, (shard, broken) in run(waiting, partial(ShardTask.__call__, threads=threads)):
        written.add(task, shard, broken)
        advance(len(task.items))
    return written


def keep_broken(folder: Path, broken: Broken) -> None:
    """Keeps which images cannot be decoded, for a build that continues in the workspace."""
    keep(folder / _BROKEN_FILE, "", broken)


def kept_broken(folder: Path) -> Broken:
    """Returns the images that ``keep_broken`` has kept."""
    return {path: (text[0], text[1]) for path, text in (kept(folder / _BROKEN_FILE, "") or {}).items()}


def refuse_broken(where: str, broken: Broken, most: int) -> None:
    """Raises BrokenImagesError, which names them, where more images of ``where`` than allowed cannot be decoded."""
    if len(broken) > most:
        raise broken_error(where, broken)


def broken_error(where: str, broken: Broken) -> BrokenImagesError:
    """Makes the error that names the broken images of ``where``."""
    return broken_images(where, {path: BadImageError(*texts) for path, texts in broken.items()})


def finish(folder: Path, uri: str, describe: Callable[[], Manifest], progress: OnProgress | None = None) -> Manifest:
    """Puts the finished data set from the workspace to its place, and returns its manifest.

    ``describe`` makes that, with the tables of labels in the workspace; ``progress`` is told where the data set replaces
    another.
    """
    with as_storage_error(uri):
        made = describe()
        write_manifest(made, str(folder / SHARDS))
        publish(folder / SHARDS, uri, progress)
    return made
