"""How a contract says what was broken."""

from __future__ import annotations

import re
from collections.abc import Callable


def expect(kept: bool, broken: str) -> None:
    """Raises AssertionError with ``broken`` where a promise is not kept; unlike ``assert``, also under ``python -O``."""
    if not kept:
        raise AssertionError(broken)


def raises(kind: type[Exception], beginning: str, call: Callable[[], object]) -> bool:
    """Tells whether a call raises an error of ``kind`` whose message begins with ``beginning``."""
    try:
        call()
    except kind as error:
        return bool(re.match(re.escape(beginning), str(error)))
    return False
