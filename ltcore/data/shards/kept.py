"""Results that a build keeps in its workspace, so that it need not find them again where it continues."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ltcore import storage
from ltcore.errors import DamagedFileError


def keep(file: Path, of: str, result: Any) -> None:
    """Writes a result that json can hold. ``of`` names all that it depends on."""
    storage.write_json(file, {"sha256": _sha256(of, result), "result": result})


def kept(file: Path, of: str) -> Any:
    """Returns the result that was kept of the same ``of``; None where there is none or it is damaged: it is found again."""
    try:
        record = storage.read_json(file) or {}
        return record["result"] if record["sha256"] == _sha256(of, record["result"]) else None
    except (DamagedFileError, KeyError):
        return None


def _sha256(of: str, result: Any) -> str:
    return hashlib.sha256(json.dumps([of, result]).encode()).hexdigest()
