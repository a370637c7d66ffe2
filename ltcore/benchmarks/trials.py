"""What many trials cost the driver of a search, in a real Ray on this machine: they run one after another and train nothing.

``python -m ltcore.benchmarks.trials SIZE FOLDER`` measures one size in a process and a Ray of its own, and prints one line of
JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ltcore.benchmarks.harness import Section, in_new_process
from ltcore.benchmarks.idle_trial import idle_trial
from ltcore.benchmarks.memory import own_bytes
from ltcore.benchmarks.options import Options
from ltcore.benchmarks.scale import MIB, Lines
from ltcore.config.schema import RunConfig
from ltcore.errors import LtcoreError
from ltcore.runtime.placement import Scaling
from ltcore.tuning.rungs import Cohort, Course, Part
from ltcore.tuning.trials import TrialBook, folder_of, name_of

METRIC, KEY = "val/top1", "train.optim.lr"
AT_A_TIME = 2
MEASURES = {
    "start, until the last one is submitted": "s",
    "memory of the driver at the end, beyond its start": "MiB resident",
    "Tune's record of the experiment": "MiB",
    "Tune's whole folder, which goes with the search": "MiB",
    "the same command, until the one that is missing is submitted": "s",
}
"""What a process measures -> its unit."""


def real_trials(options: Options) -> list[Section]:
    """Measures the growth with trials that Ray starts."""
    with tempfile.TemporaryDirectory(prefix="ltcore-trials-") as folder:
        return [of_real_trials(Path(folder), (2, 4, 8) if options.quick else (10, 30, 100)).section()]


def of_real_trials(folder: Path, sizes: Sequence[int]) -> Lines:
    """Measures the driver of a search of so many trials."""
    lines = Lines("trials in a real Ray")
    for size in sizes:
        for name, value in measured(size, folder / f"real-trials-{size}").items():
            lines.add(name, MEASURES[name], size, value)
    return lines


def measured(size: int, folder: Path) -> dict[str, float]:
    """Returns what a new process measures of a search of so many trials."""
    what = f"A search of {size} trials"
    found: dict[str, float] = in_new_process("ltcore.benchmarks.trials", size, folder, what=what)
    return found


def drive(size: int, folder: str) -> dict[str, float]:
    """Searches once in full and once for a trial that is missing, with this process as the driver."""
    from ltcore.runtime.cluster import connect, disconnect

    connect()
    try:
        search(AT_A_TIME, f"{folder}/first")  # what is imported and started once
        gc.collect()
        before = own_bytes(Path("/proc/self"))
        whole = search(size, f"{folder}/all")
        missing = Path(folder_of(f"{folder}/all", name_of(size - 1)))
        (missing / "run.json").unlink()
        again = search(size, f"{folder}/all")
    finally:
        disconnect()
    values = (
        whole.submitted_s,
        (whole.driver_bytes - before) / MIB,
        whole.state_bytes / MIB,
        whole.folder_bytes / MIB,
        again.submitted_s,
    )
    return dict(zip(MEASURES, values, strict=True))


class _Watched(Course):
    """A course that notes when it handed out its last part."""

    submitted_at = 0.0

    def next_part(self) -> Part | None:
        part = super().next_part()
        if part is not None:
            self.submitted_at = time.monotonic()
        return part


class Searched:
    """What one search came to."""

    submitted_s = 0.0
    """From its start to the last trial that it submitted."""
    driver_bytes = 0
    """Resident memory of the driver when the last trial had ended."""
    state_bytes = 0
    folder_bytes = 0


def search(size: int, folder: str) -> Searched:
    """Runs what is missing of a search, as a sweep does."""
    from ltcore.tuning.search import Ears, SearchPlan, run_course
    from ltcore.tuning.trainable import TrialPlan

    cfg, found = RunConfig.from_flat({"name": "scale", "data.uri": "digits-glt"}), Searched()
    trial = TrialPlan(
        config=cfg.to_dict(),
        data_uri=cfg.data.uri,
        sweep_uri=folder,
        id_prefix="scale",
        group="scale",
        scaling=Scaling(cpus_per_worker=1),
        engine="trial",
        code="",  # one machine and one checkout: nothing to compare
    )

    def ended(*_: Any) -> None:
        found.driver_bytes = own_bytes(Path("/proc/self"))

    def lost(name: str, words: str) -> None:
        raise LtcoreError(f"Trial {name} was lost: {words}.")

    points = {name_of(number): {KEY: 1e-3 * (number + 1)} for number in range(size)}
    began = time.monotonic()
    course = _Watched(iter([Cohort(0, points, (), TrialBook(folder, cfg, METRIC, 0.0, [], _ignore, ended))]))
    with _idle(found):
        run_course(SearchPlan(trial=trial, concurrent=AT_A_TIME), course, Ears(lambda: False, lambda: False, lost))
    found.submitted_s = course.submitted_at - began
    return found


def _ignore(*_: Any) -> None:
    """Ignores its arguments."""


@contextmanager
def _idle(found: Searched) -> Iterator[None]:
    """Lets trials train nothing, and looks at Tune's folder before the search removes it."""
    from ltcore.tuning import search as stage

    fit: Callable[..., None] = stage._fit

    def looking(plan: Any, config: Any, run: dict[str, Any], *space: Any) -> None:
        fit(plan, config, run, *space)
        files = [file for file in Path(run["storage_path"]).rglob("*") if file.is_file()]
        found.folder_bytes = sum(file.stat().st_size for file in files)
        found.state_bytes = sum(file.stat().st_size for file in files if file.name.startswith("experiment_state"))

    with mock.patch.object(stage, "tune_trial", idle_trial), mock.patch.object(stage, "_fit", looking):
        yield


if __name__ == "__main__":
    print(json.dumps(drive(int(sys.argv[1]), sys.argv[2])))
