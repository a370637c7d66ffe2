"""Small JSON and text files of a sweep, wherever its storage is."""

from __future__ import annotations

import json
from typing import Any

from ltcore.data.storage import (
    exists,
    join,
    read_bytes,
    write_bytes_atomic,
)


def load_json(uri: str) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    return json.loads(read_bytes(uri)) if exists(uri) else None


def stands_in_record(run_uri: str) -> bool:
    """Whether a run has written down that it failed, and why."""
    record = load_json(join(run_uri, "run.json"))
    return record is not None and record["status"] == "failed"


def save_json(uri: str, value: Any) -> None:
    write_bytes_atomic(uri, json.dumps(value, indent=1).encode())
