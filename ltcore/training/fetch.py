"""Temporary local access to files of a run or checkpoint.

Local files are read in place; from an object store, the few files that are needed are downloaded and removed
afterwards.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ltcore.storage import download_whole, is_local, join, list_files, open_fs


@contextlib.contextmanager
def fetched(uri: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Path]:
    """Yields a local directory with the files that ``choose`` picks out of all names below ``uri``."""
    if is_local(uri):
        yield Path(open_fs(uri)[1])
        return
    with tempfile.TemporaryDirectory(prefix="ltcore-") as folder:
        for name in choose(list_files(uri)):
            download_whole(join(uri, name), Path(folder) / name)
        yield Path(folder)


@contextlib.contextmanager
def fetched_checkpoint(uri: str, *, weights: bool) -> Iterator[Path]:
    """Yields the checkpoint at ``uri``, or the best one of a run, beside the run's record.

    Of a run it is the one that ``checkpoint.read`` picks. Training state is never fetched, and weights only with
    ``weights``.
    """
    wanted = ("meta.json", "model.pt") if weights else ("meta.json",)

    def choose(names: Sequence[str]) -> list[str]:
        folder = "" if "meta.json" in names else _newest(names)
        return [name for name in names if name == "run.json" or name in {f"{folder}{file}" for file in wanted}]

    with fetched(uri, choose) as path:
        yield path


def _newest(names: Sequence[str]) -> str:
    """Returns the folder of the newest best checkpoint, else of the newest last one.

    '' where the names contain none.
    """
    for tag in ("best", "last"):
        complete = [n for n in names if n.startswith(f"checkpoints/{tag}-") and n.endswith("/meta.json")]
        if complete:
            return max(complete).removesuffix("meta.json")
    return ""
