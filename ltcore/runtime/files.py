"""Small JSON and text files of a sweep, wherever its storage is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from ltcore.data.storage import (
    exists,
    is_local,
    join,
    list_files,
    local_path,
    open_fs,
    read_bytes,
    write_bytes_atomic,
)
from ltcore.errors import DataError

REPORT_FILES = ("sweep.json", "run.json", "metrics.jsonl", "config.yaml")


def load_json(uri: str) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    return json.loads(read_bytes(uri)) if exists(uri) else None


def stands_in_record(run_uri: str) -> bool:
    """Whether a run has written down that it failed, and why."""
    record = load_json(join(run_uri, "run.json"))
    return record is not None and record["status"] == "failed"


def save_json(uri: str, value: Any) -> None:
    write_bytes_atomic(uri, json.dumps(value, indent=1).encode())


def subdirectories(uri: str) -> list[str]:
    """Names of the directories right below ``uri``, sorted."""
    filesystem, path = open_fs(uri)
    try:
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise DataError(f"{uri} cannot be listed: {error}. Check the name and the credentials.") from error
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def local_copy(uri: str, target: Path) -> Path:
    """A local directory with the files that a report reads: ``uri`` itself, or a download of those alone."""
    if is_local(uri):
        return local_path(uri)
    for name in list_files(uri):
        if name.rpartition("/")[2] in REPORT_FILES:
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read_bytes(join(uri, name)))
    return target
