"""TensorBoard event files, made of tensorboardX's messages, which need neither TensorFlow nor torch.

We write them ourselves: tensorboardX's writer does so in a thread that a full disk ends, after which logging blocks.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.text import markdown_cell, storable
from ltcore.tracking.appended_file import AppendedFile
from ltcore.tracking.base import Scalars, Tracker, scalars_of

FILE_VERSION = "brain.Event:2"


class TensorBoardSink(Tracker):
    """Writes scalars as curves and tables as Markdown text. A resumed run hides values logged after ``resume_step``."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        self._write({"file_version": FILE_VERSION})
        if resume_step:
            self._write({"step": resume_step + 1, "session_log": SessionLog(status=SessionLog.START)})

    def _write(self, *events: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        now = time.time()
        self._file.append(b"".join(_record(Event(wall_time=now, **event).SerializeToString()) for event in events))

    def log(self, metrics: Scalars, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(*({"step": step, "summary": scalar(storable(key), value)} for key, value in scalars_of(metrics)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        from tensorboardX.summary import text

        lines = [[markdown_cell(str(cell)) for cell in line] for line in (columns, *rows)]
        lines.insert(1, ["---"] * len(columns))
        self._write({"summary": text(storable(name), "\n".join(f"| {' | '.join(line)} |" for line in lines))})

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        del summary, status  # TensorBoard has no place for them
        self._file.close()


def _record(message: bytes) -> bytes:
    """Frames a message as event files have it: length, its checksum, message, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(message))
    return length + struct.pack("<I", masked_crc32c(length)) + message + struct.pack("<I", masked_crc32c(message))
