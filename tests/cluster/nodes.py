"""Machines for a cluster, made of network and mount namespaces: each has its own address, home, /tmp, /dev/shm and sshd.

Needs root, sshd, rsync and iproute2. What the nodes share with this machine is its file system below ``/``, so that one
package cache serves all of them without a network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.paths import ROOT

T = TypeVar("T")

BRIDGE = "ltc0"
SUBNET = "10.213.7"
LAPTOP = f"{SUBNET}.1"
SSH = ("-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")

TRAIN_TAB = (
    "python -c \"import pathlib, urllib.request as u; token = (pathlib.Path.home() / '.ray/auth_token').read_text().strip(); "
    "print(u.urlopen(u.Request('http://127.0.0.1:8265/api/train/v2/runs/v1', headers={'Authorization': 'Bearer ' + token}))"
    '.read().decode())"'
)
"""What the Train tab of Ray's dashboard shows."""


def sh(*command: str, **options: object) -> str:
    """Runs a command that must succeed, and returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def uv_binary() -> str:
    """The uv program itself: what PATH finds may be a launcher that needs the user's home."""
    found = [os.environ.get("UV"), shutil.which("uv"), str(Path(sys.base_prefix) / "bin" / "uv")]
    for candidate in filter(None, found):
        path = Path(candidate).resolve()
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            return str(path)
    raise AssertionError(f"no uv program among {found}")


@dataclass
class Node:
    """One machine of the cluster."""

    name: str
    ip: str
    home: Path
    """Its home as this process sees it."""
    sshd: subprocess.Popen[bytes] | None = None


@dataclass
class Lab:
    """A laptop (this process with a home of its own) and nodes behind a bridge."""

    folder: Path
    nodes: list[Node] = field(default_factory=list)

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def home(self) -> Path:
        """Path of the home on every node, the same on all, as on the machines of one image; each sees its own there."""
        return self.folder / "home"

    @property
    def laptop_home(self) -> Path:
        return self.folder / "laptop"

    @property
    def checkout(self) -> Path:
        """The laptop's copy of what a cluster needs of the checkout; a test may edit it."""
        return self.laptop_home / "ltcore"

    def tmp(self, node: Node) -> Path:
        """What the node sees as /tmp."""
        return self.folder / f"{node.name}-tmp"

    def laptop(self, *command: str, timeout: float) -> str:
        """A command that the person at the laptop gives in the checkout: own home, no Ray or ltcore variables. Must succeed."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "LTCORE_", "WANDB_", "AWS_"))}
        home = {
            "HOME": str(self.laptop_home),
            "RAY_TMPDIR": str(self.laptop_home / "ray"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's second autoscaler, the default, starts no worker of provider `local`, which only tests like this use.
            "RAY_UP_enable_autoscaler_v2": "0",
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.checkout,
            env={**kept, **home, "PATH": path},
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{shlex.join(command)} exits with {done.returncode}:\n{said[-8000:]}"
        return said

    def on(self, node: Node, command: str, timeout: float) -> str:
        """A command in an interactive login shell on the node, as `ray exec` runs it. Must succeed."""
        shell = f"bash --login -i -c {shlex.quote(command)}"
        done = subprocess.run(
            ["ssh", *SSH, "-i", str(self.key), f"root@{node.ip}", shell],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{command} exits with {done.returncode}:\n{said[-8000:]}"
        return said


@contextlib.contextmanager
def lab(names: Sequence[str], bashrc: str) -> Iterator[Lab]:
    """Nodes with running sshd, reachable from here; everything is gone afterwards.

    Args:
        bashrc: what every node's ~/.bashrc holds before anyone has set it up.
    """
    folder = Path(tempfile.mkdtemp(prefix="ltcore-lab-", dir="/var/tmp"))
    made = Lab(folder)
    try:
        made.laptop_home.mkdir()
        made.home.mkdir()
        root = ROOT
        for name in ("ltcore", "pipelines"):
            shutil.copytree(root / name, made.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "cluster.yaml"):
            shutil.copy(root / name, made.checkout / name)
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in (made.key, folder / "host_key"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        _bridge()
        for number, name in enumerate(names, start=2):
            made.nodes.append(_node(made, f"ltc-{name}", f"{SUBNET}.{number}", bashrc))
        for node in made.nodes:
            _wait_for_ssh(made, node)
        yield made
    finally:
        for node in made.nodes:
            _remove(node)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _bridge() -> None:
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)  # of a test that was killed
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    sh("ip", "addr", "add", f"{LAPTOP}/24", "dev", BRIDGE)
    sh("ip", "link", "set", BRIDGE, "up")


def _node(made: Lab, name: str, ip: str, bashrc: str) -> Node:
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    home, tmp = made.folder / name, made.folder / f"{name}-tmp"
    home.mkdir()
    tmp.mkdir(mode=0o1777)
    (home / ".bashrc").write_text(bashrc)
    (home / ".profile").write_text('. "$HOME/.bashrc"\n')
    passwd = made.folder / f"{name}-passwd"
    lines = Path("/etc/passwd").read_text().splitlines()
    passwd.write_text(
        "\n".join(f"root:x:0:0:root:{made.home}:/bin/bash" if s.startswith("root:") else s for s in lines) + "\n"
    )
    config = made.folder / f"{name}-sshd"
    config.write_text(
        f"ListenAddress {ip}\nHostKey {made.folder}/host_key\nAuthorizedKeysFile {made.key}.pub\nStrictModes no\n"
        f"UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\nMaxSessions 64\nMaxStartups 64\n"
    )
    end = f"v-{name}"[:15]
    sh("ip", "netns", "add", name)
    sh("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
    sh("ip", "link", "set", end, "master", BRIDGE, "up")
    # The route leads nowhere, but Ray asks it for the node's own address.
    for command in (
        f"addr add {ip}/24 dev eth0",
        "link set eth0 up",
        "link set lo up",
        f"route add default via {LAPTOP}",
    ):
        sh("ip", "-n", name, *command.split())
    # Everything that sshd starts stays in these namespaces; `ray stop` on one node must not see another's processes.
    script = (
        f"hostname {name} && mount --bind {tmp} /tmp && mount -t tmpfs -o size=2g none /dev/shm"
        f" && mount --bind {home} {made.home} && mount --bind {passwd} /etc/passwd && exec /usr/sbin/sshd -D -e -f {config}"
    )
    log = (made.folder / f"{name}.log").open("wb")
    there = ["ip", "netns", "exec", name, "unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    sshd = subprocess.Popen(there, stdout=log, stderr=log)
    return Node(name, ip, home, sshd)


def _wait_for_ssh(made: Lab, node: Node) -> None:
    for _ in range(50):
        done = subprocess.run(
            ["ssh", *SSH, "-i", str(made.key), f"root@{node.ip}", "echo $HOME"], capture_output=True, text=True
        )
        if done.stdout.strip() == str(made.home):
            return
        time.sleep(0.2)
    raise AssertionError(f"{node.name}: no ssh: {done.stderr} {(made.folder / f'{node.name}.log').read_text()}")


def take_back(node: Node) -> None:
    """Ends everything that runs on the node, without a word to anyone, as a cloud does that takes its machine back."""
    for _ in range(20):
        pids = subprocess.run(["ip", "netns", "pids", node.name], capture_output=True, text=True).stdout.split()
        if not pids:
            break
        subprocess.run(["kill", "-KILL", *pids], capture_output=True)
        time.sleep(0.2)
    if node.sshd is not None:
        node.sshd.wait(timeout=10)


def inside(node: Node, call: Callable[[], T]) -> T:
    """Calls a function in the node's network: a socket that is made there stays there, whoever uses it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> T:
        with Path(f"/run/netns/{node.name}").open() as network:
            assert libc.setns(network.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
        return call()

    with ThreadPoolExecutor(1) as thread:  # which alone is there, and ends
        return thread.submit(enter).result()


def _remove(node: Node) -> None:
    """Ends everything that runs on the node, then the node."""
    take_back(node)
    subprocess.run(["ip", "netns", "del", node.name], capture_output=True)
