"""Joins the Ray cluster that this machine belongs to, or starts a local one, and says what it offers."""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import signal
import threading
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcore.errors import USERINFO, ConfigError, LtcoreError
from ltcore.runtime.cluster_address import cluster_address, current_cluster_file, read_authentication
from ltcore.runtime.plugin_modules import sent_along, share_search_path
from ltcore.text import counted
from ltcore.tracking.wandb_account import SECRET_WORDS

if TYPE_CHECKING:
    from ltcore.runtime.autoscaler import Limits
    from ltcore.runtime.session import LocalSession

QUIET = {
    # `uv run` would otherwise make Ray ship the working directory and rebuild the environment for every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report blocks until the next poll: 2 s would be most of a short epoch
    # Ray may have decided how many workers to start by what a lost node still seemed to have. After this time it decides anew,
    # as often as it takes: a run may wait for days, which is no failure, and our own watch says what it waits for.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
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
    # Ray has no other switch by which its servers listen on the loopback address alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray Train starts an actor for each of these, one after the other; nobody can see or use them on one machine.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
ON_HEAD = {"node:__internal_head__": 0.001}
"""Ray's own mark of the head node: drivers stay where no spot notice takes them away, and take no CPU that a worker needs."""
FORWARDED = ("WANDB_", "AWS_", "GOOGLE_", "LTCORE_", "NCCL_", "FI_", "GLOO_", "TORCH_")
OF_ONE_MACHINE = ("LTCORE_CACHE",)
"""Variables that say something of this machine's disks; every node of a cluster has its own."""
SECRET = re.compile("|".join((*SECRET_WORDS, "SECRET", "CREDENTIAL")))
REMOTE = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}  # fills the Train tab of the dashboard
_session: LocalSession | None = None
"""The local Ray of the connection that ``connect`` made; None on a cluster."""
_ours: Any = None
"""Ray's node of the connection that ``connect`` made; another one is the program's own, which is left running."""
STARTS = 2
"""How often a local Ray is tried: an overloaded machine may let it wait too long once."""


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
    limits: Limits | None = None
    """What the autoscaler may let it grow to; None: nothing is known beyond the nodes of now."""

    @property
    def most_cpus(self) -> float:
        """Returns the CPUs of the cluster at its largest."""
        return max(self.cpus, self.limits.cpus if self.limits else 0.0)

    @property
    def most_gpus(self) -> float:
        """Returns the GPUs of the cluster at its largest."""
        return max(self.gpus, self.limits.gpus if self.limits else 0.0)

    def describe(self) -> str:
        """Says in one line where it is and what it has."""
        where = "local Ray" if self.local else f"cluster {self.address} ({counted(self.nodes, 'node')})"
        gpus = f", {counted(self.gpus, 'GPU')}" if self.gpus else ", no GPU"
        allowed = f"{counted(self.most_cpus, 'CPU')} and {counted(self.most_gpus, 'GPU')}"
        most = f"; the autoscaler allows {allowed}" if self.limits else ""
        return f"{where}: {counted(self.real_cpus, 'CPU')}{gpus}{most}"


def quiet() -> None:
    """Sets environment and loggers for a silent Ray. Call before ray is imported."""
    _set(QUIET)
    warnings.filterwarnings("ignore", module="ray")
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _set(variables: dict[str, str]) -> None:
    for key, value in variables.items():
        os.environ.setdefault(key, value)


def connect(*, debug: bool = False) -> Cluster:
    """Joins the running cluster, else starts Ray here.

    The running cluster is that of ``RAY_ADDRESS``, or the one that `ray start` made this machine a node of. It never is
    the private Ray of another program, which ends with that program.
    """
    quiet()
    import ray
    from ray._private import ray_constants

    from ltcore.runtime.session import LocalSession
    from ltcore.training.hardware import allocated_cpus

    real = allocated_cpus()
    if ray.is_initialized():  # by the program that calls this; another token would end its process
        return _describe(ray, local=False, real=real)
    level = logging.INFO if debug else logging.ERROR
    logging.getLogger("ray").setLevel(level)  # which importing Ray has set anew
    address = cluster_address()
    _set(REMOTE if address else LOCAL)
    # Ray reads these variables when it is first imported, which may have been before this call.
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool("RAY_ENABLE_UV_RUN_RUNTIME_ENV", False)
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, True)
    if not debug:  # Ray would print the end of a server's log, for what our own messages say in a sentence
        ray._private.worker.print_to_stdstream = _say_nothing
    common: dict[str, Any] = {"logging_level": level, "log_to_driver": debug}
    handler = signal.getsignal(signal.SIGTERM)
    if address:
        _join(address, common)
    else:
        _start(real, common)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own leaves without a word, and its threads abort the process
    global _ours, _session
    _ours = ray._private.worker._global_node
    _session = None if address else LocalSession(_ours, keep=debug)
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(level)
    return _describe(ray, local=not address, real=real)


def _say_nothing(*_: object, **options: object) -> None:
    """Takes the place of Ray's printer of messages from its servers."""


def _join(address: str, common: dict[str, Any]) -> None:
    import ray
    from ray._private.services import find_node_ids

    if not find_node_ids():  # ray.init would look for it for a minute
        raise ConfigError(
            f"The Ray at {address} has no node on this machine, so no driver can run here: give the command on its head (ray "
            "submit, ray job submit), `ray start --address` this machine, or unset RAY_ADDRESS."
        )
    try:
        # Only a cluster needs this: processes of a local Ray inherit the environment, and start faster without.
        environment = {"env_vars": forwarded_environment(), **sent_along()}
        ray.init(address=address, runtime_env=environment, **common)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"The Ray at {address} answers, but this machine cannot join it: {said}") from error


def _start(real_cpus: int, common: dict[str, Any]) -> None:
    share_search_path()
    _lock()
    try:
        for _ in range(STARTS):
            if _started(real_cpus, common):
                return
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        folder = current_cluster_file().parent
        raise ConfigError(
            f"{folder} is too long a name for the sockets that Ray makes in it: set RAY_TMPDIR to a short one, such as /tmp."
        ) from error
    raise LtcoreError(
        f"Ray did not start on this machine, tried {STARTS} times: its processes were not ready within half a minute, as where "
        "the machine is overloaded or short of memory. The same command continues."
    )


def _started(real_cpus: int, common: dict[str, Any]) -> bool:
    """Starts Ray; False, with nothing left behind, where its processes were not ready in time."""
    import ray
    from ray._private.node import Node

    try:
        ray.init(
            address="local",
            num_cpus=max(4, real_cpus),
            include_dashboard=False,
            object_store_memory=512 * 2**20,
            **common,
        )
    except Exception as error:  # Ray has no class of its own for this
        if "timed out during startup" not in str(error):
            raise
        # Ray forgets the node whose constructor fails, and its processes would last as long as this one.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(node := frame.f_locals.get("self"), Node):
                node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
        return False
    return True


@functools.cache
def _token() -> str:
    """Returns one token for the life of this process.

    Ray ends a process whose open connections meet another one.
    """
    return secrets.token_hex(32)


def _lock() -> None:
    """Gives the local Ray a token of its own, which its processes inherit.

    Without one, whoever reaches its ports could run commands in them. No file contains it, and none of an earlier
    session is used.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = _token()
    read_authentication()


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
        limits=None if local else read_limits(),
    )


def nodes_are_coming(cluster: Cluster) -> bool:
    """Tells whether the autoscaler is starting nodes now; False where there is no autoscaler."""
    if cluster.local:
        return False
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(cluster.address, timeout=5)
    except Exception:  # no autoscaler, or one that does not answer: then silence is silence
        return False
    return bool(status.pending_launches or status.pending_nodes)


def forwarded_environment() -> dict[str, str]:
    """Returns the variables that every worker of a cluster gets through Ray's runtime environment.

    Ray logs them, so none is a secret, by its name or by a password inside its value.
    """
    named = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(FORWARDED) and key not in OF_ONE_MACHINE and not SECRET.search(key)
    }
    passed = {key: value for key, value in named.items() if not USERINFO.search(value)}
    return passed | {key: os.environ[key] for key in (*QUIET, *REMOTE) if key in os.environ}


def secret_environment() -> dict[str, str]:
    """Returns what workers need to log to W&B and is not forwarded: variables, or the key of ``wandb login``.

    They take it by ``heartbeat.adopt_secrets``. The credentials of object stores are not included: every node needs its
    own, also for what Ray does there.
    """
    from ltcore.tracking.wandb_account import find_key

    forwarded = forwarded_environment()
    named = {key: value for key, value in os.environ.items() if key.startswith("WANDB_") and key not in forwarded}
    return named | find_key(os.environ)


def disconnect() -> None:
    """Leaves the cluster, or ends the local Ray. A Ray that the program started itself goes on."""
    global _session
    import ray

    if _ours is not None and ray._private.worker._global_node is _ours:
        if _session is not None:
            ended, _session = _session, None
            ended.end()
        else:
            ray.shutdown()


def started_here() -> bool:
    """Returns whether this process has started the Ray it is connected to, itself or by ``connect``."""
    import ray

    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def session_folder() -> Path | None:
    """Returns the folder of the local Ray that ``connect`` started, which is removed with it; None elsewhere."""
    return _session.folder if _session is not None else None
