"""Turns a cloud's notice that it takes this machine back into a drain of its Ray node: ``python -m ltcore.runtime.spot``.

Runs on spot workers beside Ray, for as long as they live. Imports nothing but the standard library until a notice comes, so
that it weighs little. EC2 gives notice two minutes ahead by ``spot/instance-action``, and may recommend a rebalance before,
which may come to nothing for long, so the watch goes on after it; Compute Engine gives 30 s. Ray then starts nothing more on
the node, and tells its runs, which save and go on elsewhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

ENDPOINTS = ("http://169.254.169.254", "http://metadata.google.internal")
"""Of EC2 and of Compute Engine. Both answer the machine itself alone."""
EVERY_S = 5.0
"""Seconds between questions; EC2 recommends five."""
TIMEOUT_S = 2.0
FOUND_S = 60.0
"""How long a service is looked for: a machine that has just started may not reach it yet."""
MOST_BYTES = 4096
"""Of an answer that is read; the longest is some hundred bytes."""
TOKEN_TTL_S = 21600
"""How long EC2's token is asked to be good for: its maximum. It is asked for anew when it is refused."""
EC2_LEFT_S, GCE_LEFT_S = 120.0, 30.0
"""Time between notice and end where the notice does not say when."""
MARGIN_S = 10
"""How long before the end the node counts as gone: what is left is for the last copies."""
DRAIN_S = 30.0
"""How long one try to drain may take; Ray is imported for it."""
RECOMMENDED_TRIES = 5
"""Attempts to heed a recommendation, which may stand for hours and be heard again with every question."""
LOST_ANSWERS = 60
"""Questions in a row without an answer after which the metadata service counts as gone: five minutes."""


_RECOMMENDED = "EC2 rebalance recommendation"


class Unreachable(Exception):  # noqa: N818  (an answer of its own)
    """The metadata service did not answer, or not as one."""


@dataclass(frozen=True)
class Notice:
    """That this machine is taken back, and when."""

    seconds_left: float
    why: str

    @property
    def is_final(self) -> bool:
        """Tells whether it is no mere recommendation."""
        return self.why != _RECOMMENDED


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Never through a proxy: it would tell of its own machine."""


def ask(url: str, method: str = "GET", **headers: str) -> str | None:
    """Returns the text of an answer; None where there is no such thing now (404).

    Raises Unreachable for everything else, PermissionError for a token that is refused.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)
    try:
        with _direct.open(request, timeout=TIMEOUT_S) as answer:
            return str(answer.read(MOST_BYTES).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        if error.code in (401, 403):
            raise PermissionError(f"{url}: {error.code}") from None
        raise Unreachable(f"{url}: {error.code}") from None
    except (OSError, ValueError) as error:
        raise Unreachable(f"{url}: {error}") from None
    except Exception as error:  # http.client's own errors are no OSError: an answer that is no HTTP
        raise Unreachable(f"{url}: {type(error).__name__}") from None


_EC2_NOTICES = {
    "meta-data/spot/instance-action": "EC2 spot interruption",
    "meta-data/events/recommendations/rebalance": _RECOMMENDED,
}


class Ec2:
    """Notices of EC2, by version 2 of its metadata service, which wants a token."""

    def __init__(self, endpoint: str) -> None:
        self._at, self._token = f"{endpoint}/latest", ""

    def notice(self) -> Notice | None:
        """Returns the notice, if there is one. Raises Unreachable without a usable answer."""
        for name, why in _EC2_NOTICES.items():
            said = self._get(name)
            if said is not None:
                return Notice(_seconds_left(said, name), why)
        return None

    def _get(self, name: str) -> str | None:
        for _ in range(2):
            if not self._token:
                ttl = {"X_aws_ec2_metadata_token_ttl_seconds": str(TOKEN_TTL_S)}
                try:
                    self._token = (ask(f"{self._at}/api/token", "PUT", **ttl) or "").strip()
                except PermissionError as error:
                    raise Unreachable(str(error)) from None
            if not self._token.isascii() or not self._token.isprintable() or not self._token:
                self._token = ""
                raise Unreachable(f"{self._at}/api/token: no token")
            try:
                return ask(f"{self._at}/{name}", X_aws_ec2_metadata_token=self._token)
            except PermissionError:
                self._token = ""  # expired
        raise Unreachable(f"{self._at}/{name}: the token is refused")


class ComputeEngine:
    """Notices of Google Compute Engine."""

    def __init__(self, endpoint: str) -> None:
        self._url = f"{endpoint}/computeMetadata/v1/instance/preempted"

    def notice(self) -> Notice | None:
        """Returns the notice, if there is one. Raises Unreachable without a usable answer."""
        try:
            said = ask(self._url, Metadata_Flavor="Google")
        except PermissionError as error:
            raise Unreachable(str(error)) from None
        if said is None or said.strip() not in ("TRUE", "FALSE"):
            raise Unreachable(f"{self._url}: not the answer of Compute Engine")
        return Notice(GCE_LEFT_S, "Compute Engine preemption") if said.strip() == "TRUE" else None


def _seconds_left(said: str, url: str) -> float:
    """Returns how far the ``time`` of EC2's answer lies ahead; two minutes where it says none that can be.

    Raises Unreachable where the answer is no object of JSON: a portal that answers everything gives no notice.
    """
    try:
        fields = json.loads(said)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise Unreachable(f"{url}: not the answer of EC2")
    try:
        at = datetime.datetime.fromisoformat(fields["time"])
        left_s = (at - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (ValueError, KeyError, TypeError):
        return EC2_LEFT_S
    return min(max(left_s, 0.0), 10 * EC2_LEFT_S)


def find_cloud(endpoints: Sequence[str], patience_s: float = FOUND_S) -> Ec2 | ComputeEngine | None:
    """Returns the service of the cloud that this machine belongs to; None where none has answered in time."""
    until = time.monotonic() + patience_s
    while True:
        for endpoint in endpoints:
            for cloud in (Ec2(endpoint), ComputeEngine(endpoint)):
                try:
                    cloud.notice()
                except Unreachable:
                    continue
                return cloud
        if time.monotonic() + TIMEOUT_S > until:
            return None
        time.sleep(TIMEOUT_S)


def wait_for_notice(cloud: Ec2 | ComputeEngine, every_s: float = EVERY_S, *, only_final: bool = False) -> Notice | None:
    """Asks until a notice comes, or with ``only_final`` one that is no recommendation.

    Returns None where the service has not answered for minutes.
    """
    silent = 0
    while silent < LOST_ANSWERS:
        try:
            if (notice := cloud.notice()) and (notice.is_final or not only_final):
                return notice
            silent = 0
        except Unreachable:
            silent += 1
        time.sleep(every_s)
    return None


def drain(notice: Notice, node: Sequence[str] = ()) -> bool:
    """Has Ray drain this machine's node, and tells whether that was done.

    Tries again until time is up; of a recommendation once, since the notice itself may come meanwhile.
    """
    until = time.monotonic() + notice.seconds_left
    while True:
        left_s = max(1, int(until - time.monotonic()) - MARGIN_S)
        command = [sys.executable, "-m", "ltcore.runtime.drain", str(left_s), notice.why, *node]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DRAIN_S)
            if done.returncode == 0:
                return True
            said = (done.stderr or done.stdout).strip()[-500:]
        except subprocess.TimeoutExpired:
            said = f"no answer in {DRAIN_S:g} s"
        print(f"spot: Ray did not take the drain: {said}", file=sys.stderr, flush=True)
        if time.monotonic() + 2 > until or not notice.is_final:
            return False
        time.sleep(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Waits for notices and drains the node, until one is final. Returns the exit status: 1 where none is heeded any more."""
    parser = argparse.ArgumentParser("python -m ltcore.runtime.spot", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--endpoint", action="append", help="metadata service to ask instead of those of the clouds")
    parser.add_argument("--every-s", type=float, default=EVERY_S, help="seconds between questions (%(default)g)")
    parser.add_argument(
        "--found-s", type=float, default=FOUND_S, help="seconds that a service is looked for (%(default)g)"
    )
    parser.add_argument("--node", action="append", default=[], help="id of the Ray node, if this machine has several")
    args = parser.parse_args(argv)
    cloud = find_cloud(args.endpoint or ENDPOINTS, args.found_s)
    if cloud is None:
        print("spot: no metadata service answers, so this is no machine of EC2 or Compute Engine: nothing to watch.")
        return 0
    print(f"spot: watching for notices of {type(cloud).__name__}", flush=True)
    tries = RECOMMENDED_TRIES
    while notice := wait_for_notice(cloud, args.every_s, only_final=not tries):
        print(f"spot: {notice.why}, {notice.seconds_left:.0f} s left: draining this node", flush=True)
        is_drained = drain(notice, args.node)
        if notice.is_final:
            return 0 if is_drained else 1
        tries = 0 if is_drained else tries - 1
        time.sleep(args.every_s)
    print("spot: the metadata service has stopped answering, so notices are no longer seen.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
