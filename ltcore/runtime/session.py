"""The servers of a local Ray and their folder: nothing stays behind, and where a server dies, the command ends and says so.

Ray waits a minute for a server that is gone, then ends the process from C++ with lines that say nothing to a user; its
folders under /tmp/ray it never removes.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ltcore.errors import RayLostError
from ltcore.owned_folder import OwnedFolder, remove_abandoned
from ltcore.runtime.poller import Poller

NAMES = {
    "gcs_server": "GCS, which knows what runs where",
    "raylet": "raylet, which holds the workers and the object store",
}
"""Servers without which nothing goes on."""
UNWIND_S = 10.0
"""How long the main thread may take to end after a server died: it may wait inside of Ray for one that never answers."""


class LocalSession:
    """A local Ray from its start to its end."""

    def __init__(self, node: Any, *, keep: bool) -> None:
        """Claims the folder of the Ray that ``node`` runs, and removes those of drivers that were killed.

        ``keep`` leaves the folder there at the end, with its logs.
        """
        self._node, self._keep = node, keep
        self.folder = Path(node.get_session_dir_path())
        self._owned = OwnedFolder(self.folder)
        remove_abandoned(self.folder.parent, "session_*")
        self._guard = _Guard(node, self._abandon)
        self._guard.start()

    def end(self) -> None:
        """Ends Ray's servers and removes their folder. Raises RayLostError where one of them has died before."""
        import ray

        self._guard.look()
        self._guard.end()
        if self._guard.lost:
            self._abandon()
        else:
            ray.shutdown(wait_for_processes=True)
            self._remove_folder()
        if self._guard.lost:  # the cause of whatever is on its way out
            raise RayLostError(self._guard.lost) from None

    def _abandon(self) -> None:
        """Ends what is left without asking the servers, of which one is gone: each question would wait for a minute."""
        import ray
        from ray.experimental.internal_kv import _internal_kv_reset

        atexit.unregister(ray.shutdown)
        _internal_kv_reset()  # else Tune would still ask for its entries to be removed
        self._node.kill_all_processes(check_alive=False, allow_graceful=False)
        self._remove_folder()

    def _remove_folder(self) -> None:
        self._owned.release(keep=self._keep)


class _Guard(Poller):
    """Looks at the servers, and interrupts the main thread where one has died."""

    def __init__(self, node: Any, abandon: Callable[[], None]) -> None:
        super().__init__("ray-guard", 0.5)
        self._node, self._abandon = node, abandon
        self.lost = ""
        """What is wrong, in a sentence; '' for nothing."""
        self._takes_signals = threading.current_thread() is threading.main_thread()
        if self._takes_signals:
            signal.signal(signal.SIGUSR1, _interrupt)

    def look(self) -> None:
        """Notes the first server that is found dead, unless this process has left Ray: then they end one after another.

        A program that uses Ray itself, or a notebook, may have called ``ray.shutdown``.
        """
        import ray

        if not ray.is_initialized():
            return
        for kind, process in self._node.dead_processes():
            if kind in NAMES and not self.lost:
                self.lost = (
                    f"Ray's {NAMES[kind]}, has died ({_how(process.returncode)}), and everything that ran there with it. The "
                    "same command continues from the last checkpoints."
                )

    def poll(self) -> bool:
        """Looks once. Where a server has died, waits for the main thread to end the command, and else ends the process."""
        self.look()
        if not self.lost:
            return True
        if self._takes_signals:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not self._ended.wait(UNWIND_S):
            print(f"error: {self.lost}", file=sys.stderr, flush=True)
            self._abandon()
            os._exit(RayLostError.exit_code)
        return False


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # which nothing on the way takes for the failure of a run; the session's end says what it was


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
