"""Which code a node runs: the version alone would not tell two checkouts apart."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from ltcore.errors import LtcoreError

__version__ = "0.1.0"
SUFFIXES = (".py", ".yaml", ".j2")


@functools.cache
def code_version() -> str:
    """Returns version and 8 hex digits of the installed package's files.

    It is equal on nodes that run the same code.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def check_same_code(expected: str) -> None:
    """Refuses to work for a driver with other code: results would depend on which node a run landed on."""
    if expected and expected != code_version():
        raise LtcoreError(
            f"This node has ltcore {code_version()}, the driver {expected}. Put the same code on every node: `ray up` "
            "again, or rebuild the image."
        )
