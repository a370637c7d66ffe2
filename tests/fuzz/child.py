"""The process in which inputs are read: it tells of each before and after it, so that its end tells which one ended it."""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltcore.errors import LtcoreError
from tests.fuzz.harness import SilentError, Target

MEMORY_BYTES = 1536 * 2**20
"""That an input may take beyond what the process has: several times the largest image, decoded."""
_MEMORY_WORDS = ("MemoryError", "malloc of size", "realloc of size", "out of memory", "annot allocate memory")


def main(module: str, seed: str, words: Sequence[str]) -> None:
    """Runs the inputs and tells of each before and after it."""
    targets: Mapping[str, Callable[[Path], Target]] = importlib.import_module(module).TARGETS
    out, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.environ["LTCORE_CACHE"] = str(Path(folder) / "cache")
        made = {}
        for word in words:
            name, first, count = word.split(":")
            (own := Path(folder) / name).mkdir()
            made[name] = targets[name](own), int(first), int(count)
            for original in made[name][0].originals():
                made[name][0].run(original)
        limit = _address_bytes() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for name, (target, first, count) in made.items():
            for number in range(first, first + count):
                print(json.dumps({"start": f"{name}:{number}"}), file=out, flush=True)
                print(json.dumps(_outcome(target, random.Random(f"{seed} {name} {number}"))), file=out, flush=True)


def _outcome(target: Target, rng: random.Random) -> dict[str, Any]:
    case = target.mutated(rng)
    started = time.monotonic()
    outcome, text = "accepted", ""
    try:
        target.run(case)
    except LtcoreError as error:
        outcome, text = "refused", str(error)
        if any(word in text for word in _MEMORY_WORDS):
            outcome = "memory"
        elif not text.strip() or "Traceback" in text:
            outcome = "traceback"
    except SilentError as error:
        outcome, text = "silent", str(error)
    except MemoryError:
        outcome, text = "memory", _last_place()
    except BaseException as error:  # all that nobody caught is what is looked for
        outcome, text = "traceback", f"{error!r:.200} {_last_place()}"
        if any(word in text for word in _MEMORY_WORDS):
            outcome = "memory"
    return {"outcome": outcome, "text": text[:600], "seconds": round(time.monotonic() - started, 3)}


def _last_place() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [frame for frame in frames if f"{os.sep}ltcore{os.sep}" in frame.filename]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (own or frames)[-3:])


def _address_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
