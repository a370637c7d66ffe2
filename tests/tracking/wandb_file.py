"""Reads an offline W&B run back: the LevelDB log format around W&B's own protobuf records."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK_BYTES = 32768
HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)


@dataclass
class OfflineRun:
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    staged: list[Path] = field(default_factory=list)
    exit_code: int | None = None


def records(path: Path) -> list[Any]:
    data = path.read_bytes()
    assert data.startswith(HEADER)
    found, part, at = [], b"", len(HEADER)
    while at + 7 <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < 7:
            at += left
            continue
        crc, size, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + size]
        assert crc == zlib.crc32(bytes([kind]) + body)
        part, at = part + body, at + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def read_offline_run(path: Path) -> OfflineRun:
    result = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result.run = record.run
            result.config = {u.key: json.loads(u.value_json) for u in record.run.config.update if u.key != "_wandb"}
        elif kind == "history":
            result.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            result.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "artifact":
            result.staged += [Path(entry.local_path) for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            result.exit_code = record.exit.exit_code
    return result


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)
