"""What a process of Ray does before it works on a job."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import ray

from ltcore.runtime.cluster import quiet
from ltcore.runtime.heartbeat import adopt_secrets

TEMPORARY = "tmp"
"""Folder for temporary files in that of Ray's session, with which they are removed."""
MOST_CHARS = 66
"""Of the name of a folder in which W&B's process can make a socket, of which the system takes 107 with the names below it."""


def begin(heartbeat: str, nonce: str) -> None:
    """Makes this process ready for a job whose driver listens at ``heartbeat``.

    Ray ends its workers without the end of a Python process, in which libraries remove their temporary files, as W&B does
    those of tables.
    """
    quiet()
    adopt_secrets(heartbeat, nonce)
    node: Any = ray._private.worker._global_node  # a worker has no public way to it
    folder = Path(node.get_session_dir_path()) / TEMPORARY
    folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(folder)
    if len(tempfile.tempdir) <= MOST_CHARS:
        os.environ["TMPDIR"] = tempfile.tempdir  # for the processes of this one
