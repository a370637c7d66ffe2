"""Is every node fit to run? Asked before a sweep starts, and by ``ltcore doctor``.

A check that fails says what to do. Red stops a run before it costs anything; yellow is said and goes on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import resource
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltcore import storage
from ltcore.errors import ConfigError, LtcoreError
from ltcore.text import byte_size

LEAST_SHM_BYTES = 256 * 2**20
LEAST_DISK_BYTES = 2 * 2**30
LEAST_FILES = 4096
NO_NODES = ("driver", "cluster")
GREEN, YELLOW, RED = "ok", "warning", "red"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    where: str
    what: str
    found: str
    state: str = GREEN
    fix: str = ""


def examine(marker_root: str, data_uri: str, expected: str, *, shared: bool) -> dict[str, Any]:
    """What one node says about itself. Plain values; runs as a Ray task on the node, or in this process.

    Args:
        marker_root: storage in which the driver has left the file ``expected``, and the node leaves one of its own.
        data_uri: URI whose existence is asked; '' for none.
        shared: whether the storage must show the driver's file, as it must on several nodes.
    """
    return {
        "host": socket.gethostname(),
        "versions": {name: _version(name) for name in ("ray", "torch")} | {"python": sys.version.split()[0]},
        "code": _code(),
        "shm_bytes": storage.free_bytes("/dev/shm"),
        "disk_bytes": storage.free_bytes(tempfile.gettempdir()),
        "cache_bytes": storage.free_bytes(storage.cache_root()),
        "gpus": _gpus(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "auth": _auth(),
        "token_mode": _token_mode(),
        "storage": _tried(lambda: _touch(marker_root, expected, shared)),
        "data": _tried(lambda: _reach(data_uri)) if data_uri else "",
    }


def checks(
    report: Mapping[str, Any], name: str, lead: Mapping[str, Any], resources: Mapping[str, float]
) -> list[Check]:
    """The lines about one node; ``lead`` is the report of the node that drives."""
    found: list[Check] = []

    def add(what: str, value: str, bad: bool = False, fix: str = "", state: str = RED) -> None:
        found.append(Check(name, what, value, state if bad else GREEN, fix if bad else ""))

    offered = ", ".join(f"{resources.get(k, 0):g} {k}s" for k in ("CPU", "GPU") if resources.get(k))
    memory = resources.get("memory", 0)
    add("resources", (offered or "none") + (f", {byte_size(memory)}" if memory else ""))
    named = int(resources.get("GPU", 0))
    if named:
        few = report["gpus"] < named
        add("GPU driver", f"shows {report['gpus']}", few, f"{named} GPUs are offered: install NVIDIA's driver", YELLOW)
    again = "`ray up` again, or rebuild the image, so that all nodes have the same"
    add("ltcore", report["code"], report["code"] != lead["code"], f"{lead['code']} drives: {again}")
    for package, version in report["versions"].items():
        wanted = lead["versions"][package]
        add(package, version, version != wanted, f"{wanted} on the node that drives: {again}")
    add("authentication", report["auth"], report["auth"] != lead["auth"], _AUTH_FIX.format(lead["auth"]))
    if mode := report["token_mode"]:
        others = bool(int(mode, 8) & 0o077)
        add("token file", f"mode {mode}", others, "`chmod 600` it: other users of the node can read it", YELLOW)
    shm, disk, cache = report["shm_bytes"], report["disk_bytes"], report["cache_bytes"]
    low = "free some space, or use a larger volume"
    for what, free, least, fix in (
        ("/dev/shm", shm, LEAST_SHM_BYTES, "start the container with --shm-size of 30% of its memory"),
        ("disk", disk, LEAST_DISK_BYTES, f"{low} (objects are spilled there)"),
        ("cache disk", cache, LEAST_DISK_BYTES, f"{low}, or set LTCORE_CACHE to another disk"),
    ):
        add(what, f"{byte_size(free)} free", free < least, fix)
    few = report["files"] < LEAST_FILES
    add("open files", str(report["files"]), few, "`ulimit -n 65536` before `ray start`", YELLOW)
    add("storage", report["storage"] or "read and written", bool(report["storage"]), _STORAGE_FIX)
    if report["data"] != "":
        reached = report["data"] == "reachable"
        add("data", report["data"], not reached, "check --data or LTCORE_DATA, and the node's rights")
    return found


def tracking(*, ask: bool = False) -> Check:
    """Where runs will be logged; the driver's key, if it has one, reaches all workers.

    Args:
        ask: whether W&B's server is asked if it takes the key, as the start of a run does.
    """
    from ltcore.tracking import wandb_account

    try:
        mode, problem = wandb_account.ask("auto") if ask else (wandb_account.resolve_mode("auto", os.environ), "")
    except ConfigError as error:
        return Check("driver", "W&B", str(error), YELLOW, "runs with tracking.wandb=true do not start")
    if problem:
        return Check("driver", "W&B", problem, YELLOW, "runs are logged into offline files on the storage")
    no_key = "" if wandb_account.find_key(os.environ) else " (no key here)"
    words = {"online": "online, with the key of this machine", "offline": f"offline files on the storage{no_key}"}
    return Check("driver", "W&B", words.get(mode, mode))


_AUTH_FIX = (
    "{} on the node that drives: set RAY_AUTH_MODE on every node before `ray start`, and in token mode give all of them the "
    "same ~/.ray/auth_token (cluster_synced_files in cluster.yaml), mode 600"
)
_STORAGE_FIX = "give every node the same LTCORE_STORAGE and the right to read and write it (an instance profile for S3)"


def examine_here(root: str, data_uri: str, *, shared: bool = False, ask: bool = False) -> list[Check]:
    """The lines about this machine alone; needs no Ray."""
    marker = leave_marker(root)
    try:
        report = examine(root, data_uri, marker, shared=shared)
    finally:
        remove_markers(root, [marker])
    return [*checks(report, "this machine", report, {"CPU": len(os.sched_getaffinity(0))}), tracking(ask=ask)]


def verdict(found: Sequence[Check]) -> tuple[str, str]:
    """(state, sentence) about all lines together."""
    red, yellow = ([c for c in found if c.state == state] for state in (RED, YELLOW))
    nodes = len({c.where for c in found if c.where not in NO_NODES})
    on = f"{nodes} nodes" if nodes > 1 else "one node"
    if red:
        return RED, f"{len(red)} of {len(found)} checks on {on} failed: not fit to run."
    if yellow:
        return YELLOW, f"fit to run; {len(yellow)} of {len(found)} checks on {on} gave a warning."
    return GREEN, f"all {len(found)} checks on {on} passed."


def refuse_red(found: Sequence[Check]) -> None:
    """Raises ConfigError with every red line and its fix."""
    red = [c for c in found if c.state == RED]
    if red:
        lines = "\n".join(f"  {c.where}: {c.what} is {c.found}; {c.fix}" for c in red)
        raise ConfigError(
            f"The run does not start ({len(red)} of {len(found)} checks failed; `ltcore doctor`):\n{lines}"
        )


# ---- the marker files


def leave_marker(root: str) -> str:
    """Writes a small file into the storage and returns its name. Raises DataError where it cannot."""
    name = f".ltcore-doctor-{uuid.uuid4().hex[:12]}"
    storage.write_bytes_atomic(storage.join(root, name), name.encode())
    return name


def remove_markers(root: str, names: Sequence[str]) -> None:
    filesystem, path = storage.open_fs(root)
    for name in names:
        for file in (name, f"{name}-answer"):
            target = f"{path}/{file}"
            if storage.exists(storage.join(root, file)):
                filesystem.delete_file(target)


def _touch(root: str, expected: str, shared: bool) -> str:
    """'' where this node sees the driver's file and can write one itself, else what is wrong."""
    if shared and not storage.exists(storage.join(root, expected)):
        return f"{root} is another place here than on the node that drives"
    storage.write_bytes_atomic(storage.join(root, f"{expected}-answer"), b"")
    return ""


def _reach(uri: str) -> str:
    return "reachable" if storage.exists(uri) else f"{uri} does not exist"


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


def _code() -> str:
    from ltcore.version import code_version

    return code_version()


def _auth() -> str:
    """The mode, and in token mode 8 hex digits that differ where tokens differ; never the token."""
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
    """Permissions of the file that holds the token, as `chmod` takes them; '' where no file does."""
    file = _token_file()
    if os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" in os.environ or not file.is_file():
        return ""
    return f"{file.stat().st_mode & 0o777:o}"


def _gpus() -> int:
    """GPUs that the driver lists, whatever this process was given."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
