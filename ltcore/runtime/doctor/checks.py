"""Judges what nodes measured: is each of them fit to run? Asked before a start on Ray, and by ``ltcore doctor``.

A check that fails says what to do. Red stops a run before it costs anything; yellow is said and goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltcore.errors import CapacityError, ConfigError
from ltcore.runtime.placement import Placement
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


_AUTH_FIX = (
    "{} on the node that drives: set RAY_AUTH_MODE on every node before `ray start`, and in token mode give all of them the "
    "same ~/.ray/auth_token (cluster_synced_files in cluster.yaml), mode 600"
)
_STORAGE_FIX = "give every node the same LTCORE_STORAGE and the right to read and write it (an instance profile for S3)"


def checks(
    report: Mapping[str, Any], name: str, lead: Mapping[str, Any], resources: Mapping[str, float]
) -> list[Check]:
    """Returns the lines about one node; ``lead`` is the report of the node that drives."""
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
    add("cache", report["cache"] or "written", bool(report["cache"]), "set LTCORE_CACHE to a place that can be written")
    if (free := report["storage_bytes"]) is not None:  # object stores have no end
        fix = f"{low}, or choose another --storage"
        add("storage disk", f"{byte_size(free)} free", free < LEAST_DISK_BYTES, fix, YELLOW)
    few = report["files"] < LEAST_FILES
    add("open files", str(report["files"]), few, "`ulimit -n 65536` before `ray start`", YELLOW)
    add("storage", report["storage"] or "read, written, listed, removed", bool(report["storage"]), _STORAGE_FIX)
    if report["data"] != "":
        reached = report["data"] == "reachable"
        add("data", report["data"], not reached, "check --data or LTCORE_DATA, and the node's rights")
    return found


def tracking(*, ask: bool = False) -> Check:
    """Returns the line about where runs will be logged.

    The driver's key, if it has one, reaches all workers.

    Args:
        ask: whether W&B's server is asked if it accepts the key, as the start of a run does.
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


def capacity(placement: Placement) -> Check:
    """Returns the line about what one run takes and how many fit."""
    return Check("cluster", "capacity", f"one run takes {placement.describe()}")


def no_capacity(error: CapacityError) -> Check:
    """Returns the line about a run that does not fit, and what to lower."""
    what, fix = str(error).split(". ", 1)
    return Check("cluster", "capacity", what, RED, fix)


def verdict(found: Sequence[Check]) -> tuple[str, str]:
    """Returns (state, sentence) about all lines together."""
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
