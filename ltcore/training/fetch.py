"""A run or checkpoint wherever it is, as local files for as long as they are read: the place itself, or the few files that are
needed of what an object store has, which are gone again afterwards."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ltcore.storage import is_local, join, list_files, open_fs, read_bytes, write_bytes_atomic


@contextlib.contextmanager
def fetched(uri: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Path]:
    """A local directory that holds the files whose names ``choose`` picks out of all names below ``uri``."""
    if is_local(uri):
        yield Path(open_fs(uri)[1])
        return
    with tempfile.TemporaryDirectory(prefix="ltcore-") as folder:
        for name in choose(list_files(uri)):
            write_bytes_atomic(str(Path(folder) / name), read_bytes(join(uri, name)))
        yield Path(folder)


@contextlib.contextmanager
def fetched_checkpoint(uri: str, *, weights: bool) -> Iterator[Path]:
    """The checkpoint at ``uri``, or of a run the one that ``checkpoint.read`` takes, beside the run's record.

    Training state is never fetched, and weights only where they are asked for.
    """
    wanted = ("meta.json", "model.pt") if weights else ("meta.json",)

    def choose(names: Sequence[str]) -> list[str]:
        folder = "" if "meta.json" in names else _newest(names)
        return [name for name in names if name == "run.json" or name in {f"{folder}{file}" for file in wanted}]

    with fetched(uri, choose) as path:
        yield path


def _newest(names: Sequence[str]) -> str:
    """The folder of the newest best checkpoint among the names, else of the newest last one; '' where there is none."""
    for tag in ("best", "last"):
        complete = [n for n in names if n.startswith(f"checkpoints/{tag}-") and n.endswith("/meta.json")]
        if complete:
            return max(complete).removesuffix("meta.json")
    return ""
