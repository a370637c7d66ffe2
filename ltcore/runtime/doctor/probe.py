"""What a node measures of itself, and the marker files by which nodes see that they share a storage.

Runs as a Ray task on every node of a cluster, or in this process where there is no Ray.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltcore import storage
from ltcore.data.shards.manifest import MANIFEST, read_manifest
from ltcore.errors import LtcoreError
from ltcore.plugins.distributions import version_of
from ltcore.version import code_version

MARKER_AGE_S = 86400.0
"""More than any command that leaves a marker takes, and clocks of nodes differ."""
_MARKER = re.compile(r"\.ltcore-doctor-(\d{1,12})-")


def examine(
    marker_root: str, data_uri: str, expected: str, shared: bool, plugins: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Returns one node's report on itself, in plain values.

    Args:
        marker_root: storage in which the driver has left the file ``expected``, and the node leaves one of its own.
        data_uri: URI whose existence is checked; '' for none.
        shared: whether the storage must show the driver's file, as it must on several nodes.
        plugins: modules whose versions are reported.
    """
    return {
        "versions": {name: _version(name) for name in ("ray", "torch")}
        | {"python": sys.version.split()[0]}
        | {f"plugin {name}": version_of(name) or "missing" for name in plugins},
        "code": code_version(),
        "shm_bytes": storage.free_bytes("/dev/shm"),
        "disk_bytes": storage.free_bytes(tempfile.gettempdir()),
        "cache": _tried(_open_cache),
        "cache_bytes": storage.free_bytes(storage.cache_root()),
        "storage_bytes": storage.free_bytes(storage.local_path(marker_root)) if storage.is_local(marker_root) else None,
        "gpus": _gpus(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "auth": _auth(),
        "token_mode": _token_mode(),
        "storage": _tried(lambda: _touch(marker_root, expected, shared)),
        "data": _tried(lambda: _reach(data_uri)) if data_uri else "",
    }


# ---- storage and data


def leave_marker(root: str) -> str:
    """Writes a small file into the storage and returns its name. Raises DataError where it cannot.

    Those that killed commands have left, and what nodes left in answer, go: each name tells when it was made.
    """
    name = f".ltcore-doctor-{int(time.time())}-{uuid.uuid4().hex[:12]}"
    storage.write_bytes_atomic(storage.join(root, name), name.encode())
    for left in storage.entries(root):
        made = _MARKER.match(left)
        if made and time.time() - int(made[1]) > MARKER_AGE_S:
            storage.remove(storage.join(root, left))
    return name


def remove_marker(root: str, name: str) -> None:
    """Removes the file of ``leave_marker``, and those that nodes left in answer."""
    for file in (name, f"{name}-answer"):
        storage.remove(storage.join(root, file))


def _touch(root: str, expected: str, shared: bool) -> str:
    """Returns '' where this node sees the driver's file and can write one itself, else what is wrong."""
    if shared and not storage.exists(storage.join(root, expected)):
        return f"{root} is another place here than on the node that drives"
    storage.write_bytes_atomic(storage.join(root, f"{expected}-answer"), b"")
    return _keeps_promises(storage.join(root, f"{expected}-{uuid.uuid4().hex[:12]}"))


def _keeps_promises(folder: str) -> str:
    """Returns '' where the storage shows at once what was written and removed, as runs and their leases need it."""
    file = storage.join(folder, "probe")
    storage.write_bytes_atomic(file, b"1")
    storage.write_bytes_atomic(file, b"22")
    listed, content = storage.list_files(folder), storage.read_bytes(file)
    storage.remove(file)
    left = storage.list_files(folder)
    if storage.is_local(folder) and not left:
        storage.local_path(folder).rmdir()
    if listed != ["probe"]:
        return "a file that was written is not listed afterwards, so two processes could work on one run"
    if content != b"22":
        return "a file that was replaced shows its old content"
    return f"a file that was removed is still listed ({left[0]})" if left else ""


def _open_cache() -> str:
    storage.cache_folder()
    return ""


def _reach(uri: str) -> str:
    if not storage.exists(uri):
        return f"{uri} does not exist"
    if storage.exists(storage.join(uri, MANIFEST)):
        for split in read_manifest(uri).splits.values():
            for shard in split.shards[:1]:  # tars of others lie elsewhere
                if shard.base and not storage.exists(tar := storage.join(shard.base, shard.path)):
                    return f"{tar} does not exist"
    return "reachable"


def _tried(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except (LtcoreError, OSError) as error:
        return str(error)


# ---- readings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _auth() -> str:
    """Returns the mode, and in token mode 8 hex digits that differ where tokens differ; never the token."""
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if mode != "token":
        return mode
    token, file = os.environ.get("RAY_AUTH_TOKEN"), _token_file()
    if token is None and not file.is_file():
        return "token, but there is no token"
    token = token if token is not None else file.read_text(encoding="utf-8").strip()
    return f"token {hashlib.sha256(token.encode()).hexdigest()[:8]}"


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def _token_mode() -> str:
    """Returns the permissions of the file that holds the token, as `chmod` takes them; '' where no file does."""
    file = _token_file()
    if os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" in os.environ or not file.is_file():
        return ""
    return f"{file.stat().st_mode & 0o777:o}"


def _gpus() -> int:
    """Counts the GPUs that the driver lists, not only those given to this process."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
