"""Reads TensorBoard event files as TensorBoard does: record by record, each with its checksums."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def read_events(folder: Path) -> list[Any]:
    """Returns the events of the only event file in ``folder``; each record must be whole."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (path,) = folder.iterdir()
    assert "tfevents" in path.name, "TensorBoard opens no other"
    data, at, events = path.read_bytes(), 0, []
    while at < len(data):
        length, length_sum = struct.unpack_from("<QI", data, at)
        message = data[at + 12 : at + 12 + length]
        (message_sum,) = struct.unpack_from("<I", data, at + 12 + length)
        assert (length_sum, message_sum) == (masked_crc32c(data[at : at + 8]), masked_crc32c(message))
        events.append(Event.FromString(message))
        at += 16 + length
    assert events[0].file_version == "brain.Event:2"
    return events
