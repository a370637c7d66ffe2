"""The cost of a further trial of a sweep: reused processes against the naive pattern.

The naive pattern is a Tune function that starts a Ray Train run. Both sides train the same configuration through the
same loop. Measured is the time from the end of one trial to the end of the next, minus the seconds of training in the
trial's ``run.json``.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from ltcore.benchmarks import datasets as images
from ltcore.benchmarks.harness import Aim, Measurement, Rung, Section
from ltcore.benchmarks.naive import run_naive
from ltcore.benchmarks.options import Options
from ltcore.config.records import RunRecord, SweepRecord
from ltcore.config.schema import RunConfig
from ltcore.data.datasets.longtail import profile
from ltcore.errors import LtcoreError
from ltcore.runtime.placement import Scaling
from ltcore.storage import join, write_json
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from ltcore.tuning.rungs import Cohort, Course
from ltcore.tuning.trials import TrialBook, folder_of

KEY = "train.optim.lr"
TRIALS = 6
MOST_S = 1.0
OURS, NAIVE = "further trial", "further trial, Train in Tune"


def sweep(options: Options) -> list[Section]:
    """Measures further trials of both sides."""
    from ltcore.runtime.cluster import connect, disconnect

    trials = 2 if options.quick else TRIALS
    cfg = config(options)
    section = Section("sweep: seconds of a further trial beyond its training", "s")
    trained: list[float] = []
    connect()
    try:
        with tempfile.TemporaryDirectory(prefix="ltcore-bench-") as folder:
            for turn in range(options.turns):
                for side, run in ((OURS, run_ours), (NAIVE, run_naive_trials)):
                    ends, seconds = run(cfg, f"{folder}/{turn}-{run.__name__}", trials)
                    section.measurements.append(Measurement(side, turn, beyond(ends, seconds)))
                    trained += seconds
    finally:
        disconnect()
    section.rungs.append(Rung(OURS, NAIVE, Aim("<=", MOST_S, on="median")))
    section.notes.append(
        f"{trials} trials one after another, 1 CPU each; a trial trains {statistics.median(trained):.2f} s (median); the "
        "naive pattern starts one TorchTrainer worker per trial under the same settings of Ray"
    )
    return [section]


def beyond(ends: list[float], trained_s: list[float]) -> float:
    """Returns the seconds of a further trial beyond its training.

    The first trial is left out, since it pays for what is started once.

    Args:
        ends: when each trial ended, in order.
        trained_s: how long each trained, in the same order.
    """
    return (ends[-1] - ends[0] - sum(trained_s[1:])) / (len(ends) - 1)


def config(options: Options) -> RunConfig:
    """Returns about 0.6 s of training on a core: a small network on a few hundred images of 16 px."""
    uri = images.generated(profile(60, 10, 10))
    return RunConfig.from_flat(
        {
            "name": "bench",
            "data.uri": uri,
            "data.image_size": 16,
            "data.loader": "cache",
            "model.name": "resnet8",
            "train.batch_size": 32,
            "train.epochs": 1 if options.quick else 6,
            "train.threads": 1,
            "tracking.wandb": not options.quick,
            "tracking.wandb_mode": "offline",
        }
    )


def values(trials: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, parameters) of different trials."""
    return [(f"{number:05d}", {KEY: 0.05 + 0.01 * number}) for number in range(trials)]


def run_ours(cfg: RunConfig, folder: str, trials: int) -> tuple[list[float], list[float]]:
    """Returns when the trials of the package's own search ended, and how long each trained."""
    from ltcore.tuning.search import Ears, SearchPlan, run_course
    from ltcore.tuning.trainable import TrialPlan

    ends: dict[str, float] = {}

    def ended(name: str, params: Any, state: str, record: Any) -> None:
        del params, state, record
        ends[name] = time.monotonic()

    write_json(join(folder, SweepRecord.FILE), {})  # a trial does nothing for a sweep that is not there
    plan = SearchPlan(
        trial=TrialPlan(
            config=cfg.to_dict(),
            data_uri=cfg.data.uri,
            sweep_uri=folder,
            id_prefix="bench",
            group="bench",
            scaling=Scaling(cpus_per_worker=1),
            engine="trial",
            code="",  # one machine and one checkout: nothing to compare
        ),
        concurrent=1,
    )
    book = TrialBook(folder, cfg, "val/balanced_accuracy", 0.0, [], _ignore, ended)
    course = Course(iter([Cohort(0, dict(values(trials)), (), book)]))
    run_course(plan, course, Ears(lambda: False, lambda: False, _ignore))
    return collected(folder, ends)


def _ignore(*_: Any) -> None:
    """Ignores its arguments."""


def run_naive_trials(cfg: RunConfig, folder: str, trials: int) -> tuple[list[float], list[float]]:
    """Runs the same trials by the naive pattern, and returns the same as the function before."""
    jobs: dict[str, Job] = {}
    for name, params in values(trials):
        jobs[name] = Job(
            config=cfg.replace({**params, "name": f"trial-{name}"}).to_dict(),
            data_uri=cfg.data.uri,
            run_uri=f"{folder}/trials/{name}",
            info=RunInfo(id=f"bench-{name}", kind="trial", group="bench", test=False),
            cpus=1,
            code="",
        )
    return collected(folder, run_naive(jobs, folder))


def collected(folder: str, ends: dict[str, float]) -> tuple[list[float], list[float]]:
    """Returns the ends in order, and the seconds of training in the same order.

    Raises LtcoreError where a trial did not finish.
    """
    order = sorted(ends, key=lambda name: ends[name])
    seconds = []
    for name in order:
        record = RunRecord.read(folder_of(folder, name))
        if record is None or record.seconds is None or record.status != "finished":
            raise LtcoreError(f"Trial {name} did not finish: {record.reason if record else 'it has no run.json'}.")
        seconds.append(record.seconds)
    return [ends[name] for name in order], seconds
