"""Joins the Ray cluster this machine belongs to, or starts a local one, quietly; and knows what the cluster offers."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.errors import ConfigError

if TYPE_CHECKING:
    from ltcore.runtime.autoscaler import Limits

QUIET = {
    # `uv run` would otherwise make Ray ship the working directory and rebuild the environment for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report blocks until the next poll: 2 s would be most of a short epoch
    # A run may wait for days until others end or nodes come, which is no failure; where nothing happens at all, our own watch
    # notices and says why.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "604800",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # a stopped trial closes its W&B run before its process is reused
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed at once reports nothing, and must not end the sweep
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own lets fit() return as if the search had ended
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "GLOG_minloglevel": "2",
}

LOCAL = {
    # Ray Train starts an actor for each of these, one after the other; nobody can see or use them on one machine.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
DRIVER_RESOURCE = "trial_driver"
"""Custom resource of the head node in cluster.yaml: drivers stay where no spot notice can take them away."""
FORWARDED = ("WANDB_", "AWS_", "GOOGLE_", "LTCORE_")
SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL")
REMOTE = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}  # fills the Train tab of the dashboard


@dataclass(frozen=True)
class Cluster:
    """What was found or started."""

    local: bool
    """True: started by this process, ends with it."""
    cpus: float
    """Logical CPUs. A local Ray over-commits small machines, so that data tasks always find one."""
    real_cpus: int
    gpus: float
    nodes: int
    address: str
    dashboard: str
    holds_drivers: bool = False
    """A node offers DRIVER_RESOURCE: drivers of trials go there."""
    limits: Limits | None = None
    """What the autoscaler may let it grow to; None: nothing is known beyond the nodes of now."""

    @property
    def most_cpus(self) -> float:
        return max(self.cpus, self.limits.cpus if self.limits else 0.0)

    @property
    def most_gpus(self) -> float:
        return max(self.gpus, self.limits.gpus if self.limits else 0.0)

    def describe(self) -> str:
        where = "local Ray" if self.local else f"cluster {self.address} ({self.nodes} node{'s' * (self.nodes > 1)})"
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ", no GPU"
        grows = f"; the autoscaler allows {self.most_cpus:g} CPUs and {self.most_gpus:g} GPUs" if self.limits else ""
        return f"{where}: {self.real_cpus} CPUs{gpus}{grows}"


def quiet() -> None:
    """Environment and loggers for a silent Ray. Call before ray is imported."""
    _set(QUIET)
    warnings.filterwarnings("ignore", module="ray")
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _set(variables: dict[str, str]) -> None:
    for key, value in variables.items():
        os.environ.setdefault(key, value)


def connect(*, debug: bool = False) -> Cluster:
    """Joins the running cluster (``RAY_ADDRESS``, or the one that `ray start` made this machine a node of), else starts
    Ray here: never the private Ray of another program, which ends with that program."""
    quiet()
    address = _cluster_address()
    _set(REMOTE if address else LOCAL)
    from ltcore.training.hardware import allocated_cpus

    real = allocated_cpus()
    if not address:
        # A token file of an earlier session would switch authentication on for this private instance.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from ray._private import ray_constants

    # Ray reads this variable when it is first imported, which may have been before this call.
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool("RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)
    level = logging.INFO if debug else logging.ERROR
    common: dict[str, Any] = {
        "logging_level": level,
        "log_to_driver": debug,
    }
    if ray.is_initialized():
        return _describe(ray, local=False, real=real)
    if address:
        # Only a cluster needs this: processes of a local Ray inherit the environment, and start faster without.
        ray.init(address=address, runtime_env={"env_vars": forwarded_environment()}, **common)
    else:
        ray.init(
            address="local",
            num_cpus=max(4, real),
            include_dashboard=False,
            object_store_memory=512 * 2**20,
            **common,
        )
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(level)
    return _describe(ray, local=not address, real=real)


def _cluster_address() -> str:
    """Where the cluster answers; '' for none. ConfigError where there should be one and it is silent."""
    given = os.environ.get("RAY_ADDRESS", "auto")
    noted = current_cluster_file()
    address = given if given != "auto" else noted.read_text().strip() if noted.exists() else ""
    if not address or "://" in address or _answers(address):
        return address
    if on_cluster_node():
        raise ConfigError(
            f"This machine belongs to a cluster, but its Ray does not answer at {address}. A sweep is not started beside "
            "it: `ray up` the cluster again, or unset RAY_ADDRESS."
        )
    return ""  # a note that an ended `ray start` left behind


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def current_cluster_file() -> Path:
    """Where `ray start` notes the address of this machine's cluster."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"


def on_cluster_node() -> bool:
    """Whether someone meant this process to run on a cluster: then it must not quietly start a Ray of its own."""
    from ltcore.runtime.autoscaler import BOOTSTRAP

    return bool(os.environ.get("RAY_ADDRESS")) or BOOTSTRAP.expanduser().exists()


def _describe(ray: Any, *, local: bool, real: int) -> Cluster:
    total = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    context = ray.get_runtime_context()
    from ltcore.runtime.autoscaler import read_limits

    return Cluster(
        local=local,
        cpus=total.get("CPU", 0.0),
        real_cpus=real if local else int(total.get("CPU", 0)),
        gpus=total.get("GPU", 0.0),
        nodes=len(alive),
        address=context.gcs_address,
        dashboard=ray._private.worker.get_dashboard_url() or "",
        holds_drivers=total.get(DRIVER_RESOURCE, 0) > 0,
        limits=None if local else read_limits(),
    )


def nodes_are_coming(cluster: Cluster) -> bool:
    """Whether the autoscaler is starting nodes now; False where there is none to ask."""
    if cluster.local:
        return False
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(cluster.address, timeout=5)
    except Exception:  # no autoscaler, or one that does not answer: then silence is silence
        return False
    return bool(status.pending_launches or status.pending_nodes)


def forwarded_environment() -> dict[str, str]:
    """Variables that every worker gets through Ray's runtime environment, which Ray also logs: none is a secret."""
    passed = {key: value for key, value in os.environ.items() if key.startswith(FORWARDED) and not SECRET.search(key)}
    return passed | {key: os.environ[key] for key in (*QUIET, *REMOTE) if key in os.environ}


def secret_environment() -> dict[str, str]:
    """What workers need to log to W&B (``pulse.adopt_secrets``): variables, or a key that ``wandb login`` left here.

    Not the credentials of object stores: every node needs those for itself, also for what Ray does there.
    """
    from ltcore.tracking.wandb_account import find_key

    named = {key: value for key, value in os.environ.items() if key.startswith("WANDB_") and SECRET.search(key)}
    return named | find_key(os.environ)


def disconnect() -> None:
    import ray

    ray.shutdown()
