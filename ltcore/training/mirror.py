"""Keeps a run's local directory and its copy on shared storage equal, in the background.

Training always writes to a local disk; where the run belongs on an object store, changed files follow in one thread, the
``meta.json`` of a checkpoint last, so that a reader on the store never finds half a checkpoint either.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs as pafs

from ltcore.data.storage import is_local, join, open_fs


class Mirror:
    """``local`` mirrored to ``uri``. With a local ``uri`` the two are the same directory and nothing is copied."""

    def __init__(self, uri: str, scratch: Path) -> None:
        self.uri = uri
        self.remote = not is_local(uri)
        self.local = scratch if self.remote else Path(open_fs(uri)[1])
        self._sent: dict[str, tuple[int, int]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ltcore-mirror") if self.remote else None
        self._last: Future[None] | None = None

    def pull(self) -> None:
        """Brings what the storage has to an empty local directory: a run that another node began."""
        if not self.remote or any(self.local.glob("*")):
            return
        filesystem, root = open_fs(self.uri)
        for info in filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
            if info.type == pafs.FileType.File:
                name = info.path[len(root) :].lstrip("/")
                target = self.local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with filesystem.open_input_stream(info.path) as source:
                    target.write_bytes(source.read())
                self._sent[name] = _stamp(target)

    def push(self) -> None:
        """Starts copying what changed. Raises what the previous copy raised: a full bucket must not stay unnoticed."""
        if self._pool is None:
            return
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(self._copy)

    def close(self) -> None:
        """Copies what is left and waits."""
        if self._pool is None:
            return
        self.push()
        assert self._last is not None
        self._last.result()
        self._pool.shutdown()

    def _copy(self) -> None:
        files = {str(p.relative_to(self.local)): p for p in self.local.rglob("*") if p.is_file()}
        files = {name: p for name, p in files.items() if not any(part.startswith(".") for part in Path(name).parts)}
        changed = []
        for name, path in files.items():
            try:
                if self._sent.get(name) != _stamp(path):
                    changed.append(name)
            except FileNotFoundError:  # an older checkpoint, removed while we looked
                continue
        for name in sorted(changed, key=lambda n: (n.endswith("meta.json"), n)):
            try:
                stamp, data = _stamp(files[name]), files[name].read_bytes()
            except FileNotFoundError:
                continue
            filesystem, target = open_fs(join(self.uri, name))
            if isinstance(filesystem, pafs.LocalFileSystem):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_output_stream(target) as sink:
                sink.write(data)
            self._sent[name] = stamp
        for name in [n for n in self._sent if n not in files and n.startswith("checkpoints/")]:
            filesystem, target = open_fs(join(self.uri, name))
            filesystem.delete_file(target)
            del self._sent[name]


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
