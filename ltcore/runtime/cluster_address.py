"""Where the Ray cluster of this machine is, whether its head answers, and whether it takes this machine's token."""

from __future__ import annotations

import os
import re
import stat
import sys
import warnings
from pathlib import Path

from ltcore.errors import ConfigError

CONNECT_S = 10.0
"""How long the head of a cluster may take to answer."""
_HOST_PORT = re.compile(r"[^/\s@]+:\d{1,5}")


def cluster_address() -> str:
    """Returns the address where the cluster answers; '' for none.

    Raises ConfigError where there should be one and none answers.
    """
    given = os.environ.get("RAY_ADDRESS") or "auto"
    if given == "local":
        return ""
    if given != "auto" and not _HOST_PORT.fullmatch(given):
        shown = given.rpartition("@")[2]  # before it may stand a password
        raise ConfigError(
            f"RAY_ADDRESS={shown}: expected host:port of the head, 'auto' or 'local'. Ray's clients (ray://) and its dashboard "
            "(http://) run no sweep: submit the script to the cluster instead (ray submit, ray job submit)."
        )
    address = given if given != "auto" else noted_address()
    if address and _answers(address, noted=given == "auto"):
        return address
    if on_cluster_node():
        where = f"at {address}" if address else f"here ({current_cluster_file()} names none of yours)"
        raise ConfigError(
            f"This machine belongs to a cluster, but no Ray answers {where}. A sweep is not started beside it: `ray up` the "
            "cluster again, or correct or unset RAY_ADDRESS."
        )
    return ""  # none, or a note that an ended `ray start` left behind


def noted_address() -> str:
    """Returns the address that `ray start` noted on this machine, or ''.

    It is '' also where the note is another user's: whoever joins a cluster runs that user's commands, and a note in a
    folder for everyone is no invitation.
    """
    note = current_cluster_file()
    try:
        folder, file = note.parent.lstat(), note.lstat()
        # Looked at before it is opened: what others put there may be a pipe, which gives nothing for ever.
        if {folder.st_uid, file.st_uid} <= {0, os.getuid()} and stat.S_ISREG(file.st_mode):
            address = note.read_text(encoding="utf-8", errors="replace").strip()
            return address if _HOST_PORT.fullmatch(address) else ""
    except OSError:
        return ""
    warnings.warn(
        f"{note} belongs to another user or is a link, so the Ray that it names is not joined. Set RAY_ADDRESS to that address "
        "if it should be, or RAY_TMPDIR to a folder of yours before `ray start`.",
        stacklevel=1,  # one place, so that it is said once
    )
    return ""


def _answers(address: str, *, noted: bool) -> bool:
    """Tells whether the head of a cluster answers. Raises ConfigError where it does not accept this machine's token.

    This is one request to the part of Ray that drivers ask first; ray.init would repeat any other request for minutes.
    """
    import grpc
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]  # generated
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    read_authentication()  # else a token of a Ray that this program had before would count as one of the machine
    if noted:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as the `ray start` that noted it
    read_authentication()
    # ray.init puts the machine's own address in the place of 127.0.0.1, where a private Ray does not listen.
    asked = canonicalize_bootstrap_address(address)
    assert asked is not None, "it is a host and a port"
    channel = init_grpc_channel(asked, [("grpc.enable_http_proxy", 0)])
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=CONNECT_S)
    except (grpc.RpcError, AuthenticationError) as error:
        if isinstance(error, grpc.RpcError) and error.code() != grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise ConfigError(
            f"The Ray at {address} asks for a token, and this machine has none or another one. Set RAY_AUTH_MODE=token, and "
            "give it the cluster's ~/.ray/auth_token (mode 600) or RAY_AUTH_TOKEN."
        ) from None
    finally:
        channel.close()
    return True


def current_cluster_file() -> Path:
    """Returns the file in which `ray start` notes the address of this machine's cluster."""
    ours = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # as Ray's own get_ray_address_file
    folder = os.environ.get("RAY_TMPDIR") or ours or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"


def on_cluster_node() -> bool:
    """Tells whether this process is meant to run on a cluster.

    If so, it must not quietly start a Ray of its own.
    """
    from ltcore.runtime.autoscaler import BOOTSTRAP

    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local") or BOOTSTRAP.expanduser().exists()


def read_authentication() -> None:
    """Lets Ray read mode and token from the environment as it is now, not as when Ray was imported."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
