"""A sweep from start to report: search beside a baseline, choice on validation, paired retrains, one test, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ltcore.config import tree as trees
from ltcore.config.load import dump, from_dict, override
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.data.storage import is_local, join, write_bytes_atomic
from ltcore.errors import LtcoreError, StallError
from ltcore.evaluation.paired import compare
from ltcore.objective.registry import TERMS
from ltcore.runtime.board import Board
from ltcore.runtime.capacity import Demand, Scaling
from ltcore.runtime.cluster import DRIVER_RESOURCE, Cluster
from ltcore.runtime.execute import Job, forget
from ltcore.runtime.files import load_json, local_copy, save_json
from ltcore.runtime.identity import identity_hash
from ltcore.runtime.meter import NodeMeter
from ltcore.runtime.pulse import Watch, start_pulse
from ltcore.runtime.results import result_of
from ltcore.runtime.search import TUNE_DIR, Listener, SearchPlan, run_search
from ltcore.runtime.trials import collect, known_trials, settled
from ltcore.runtime.version import code_version
from ltcore.runtime.worker import run_job
from ltcore.tracking.records import short_names
from ltcore.tracking.report import write_report
from ltcore.tracking.tracker import TrackerOptions, open_tracker
from ltcore.training.hardware import describe_hardware
from ltcore.training.mirror import Mirror

TERMS_OFF = {f"objective.terms.{name}": None for name in TERMS}


@dataclass(frozen=True)
class SweepSetup:
    """A sweep whose questions are answered: what, on which data, where, with what."""

    sweep: SweepConfig
    base: RunConfig
    seed: int
    data_uri: str
    uri: str
    """Directory of the sweep on the storage."""
    cluster: Cluster
    engine: str
    scaling: Scaling
    need: Demand
    concurrent: int
    images_per_epoch: int
    max_hours: float | None
    debug: bool


class Sweep:
    """One execution of a sweep; everything that must survive it is in ``sweep.json`` and the run directories."""

    def __init__(self, setup: SweepSetup, fields: dict[str, Any], board: Board) -> None:
        self.setup, self.board = setup, board
        self.state_uri = join(setup.uri, "sweep.json")
        self.fields: dict[str, Any] = load_json(self.state_uri) or {
            "schema": 1,
            "name": setup.sweep.name,
            "created_at": _now(),
            "recipe": setup.sweep.recipe,
            "space": {key: str(spec) for key, spec in setup.sweep.space.items()},
            "search": setup.sweep.search,
            "metric": setup.sweep.metric,
            "config_hash": identity_hash(fields),
            "identity": fields,
            "stages": {},
            "searches": [],
            "sizes": [],
        }
        self.fields |= {
            "status": "running",
            "reason": "",
            "num_trials": setup.sweep.size,
            "hardware": describe_hardware() | {"cluster": setup.cluster.describe()},
            "engine": setup.engine,
        }
        if setup.sweep.size not in self.fields["sizes"]:  # new, or trials are added to a finished sweep
            self.fields["sizes"].append(setup.sweep.size)
            self.fields["identity"] = fields
        self.meter = NodeMeter(self.fields.get("node_hours", {}))
        self._cut: set[str] = set()
        """Trials that the time limit ended."""
        name = f"pulse-{self.fields['config_hash'][:12]}-{time.time_ns()}"
        self.pulse_name = name
        self._pulse = start_pulse(name)
        deadline = None if setup.max_hours is None else setup.max_hours * 3600
        self.watch = Watch(self._pulse, board.update, stall_s=setup.sweep.stall_s, deadline_s=deadline)

    # ---- the whole

    def run(self) -> dict[str, Any]:
        self.save()
        self.watch.start()
        self.meter.start()
        try:
            with contextlib.suppress(_TimeIsUp):
                self.search()
            if self.choose() and not self.watch.out_of_time.is_set():
                if self.setup.sweep.search == "pbt":
                    self._tell_schedule()
                elif self.setup.sweep.retrain_seeds:
                    with contextlib.suppress(_TimeIsUp):
                        self.retrain()
            self.fields["status"] = "stopped" if self.watch.out_of_time.is_set() else "finished"
            self.report()
        except BaseException as error:
            self.fields["status"] = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.fields["reason"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.watch.end()
            self.meter.end()
            self.fields["finished_at"] = _now()
            self.fields["stages"] = {k: round(v, 1) for k, v in self.board.stages.items()}
            self.save()
        return self.fields

    def save(self) -> None:
        self.fields["node_hours"] = self.meter.hours()
        self.fields["most_nodes"] = max(self.fields.get("most_nodes", 0), self.meter.most_nodes)
        save_json(self.state_uri, self.fields)

    # ---- search

    def search(self) -> None:
        setup = self.setup
        with self.board.stage("search", expected=setup.sweep.size + 1):
            job = self._job("baseline", setup.seed, "baseline", "trials/baseline", {})
            baseline = {self._submit(job, setup.engine, setup.scaling): "baseline"}
            following = self._next_search()
            if following is not None:
                self._search(following)
            while baseline:
                self._wait_any(baseline)
        self._collect()

    def _next_search(self) -> dict[str, Any] | None:
        """The search that a dead driver left, which Tune continues; else one over the trials that are not settled."""
        setup, searches = self.setup, self.fields["searches"]
        if searches and searches[-1]["status"] == "running":
            return searches[-1]
        known = setup.sweep.search in ("random", "grid")
        left = [name for name in self._points() if not settled(setup.uri, name)] if known else []
        if searches and not left:
            return None
        folder = TUNE_DIR if not searches else f"{TUNE_DIR}-{len(searches) + 1}"
        searches.append({"folder": folder, "trials": left, "status": "running"})
        self.save()
        return searches[-1]

    def _points(self) -> dict[str, dict[str, Any]]:
        return known_trials(self.setup.sweep, self.setup.seed, self.fields["sizes"])

    def _search(self, following: dict[str, Any]) -> None:
        setup = self.setup
        points = self._points() if following["trials"] else {}
        plan = SearchPlan(
            sweep=setup.sweep,
            seed=setup.seed,
            sweep_uri=setup.uri,
            trial={
                "config": dump(setup.base),
                "data_uri": setup.data_uri,
                "sweep_uri": setup.uri,
                "id_prefix": self._id_prefix(),
                "group": setup.sweep.name,
                "scaling": setup.scaling.plain(),
                "engine": setup.engine,
                "hot": list(setup.sweep.hot) if setup.sweep.search == "pbt" else [],
                "pulse": self.pulse_name,
                "code": code_version(),
            },
            scaling=setup.scaling,
            engine=setup.engine,
            total_images=setup.base.train.epochs * setup.images_per_epoch,
            concurrent=setup.concurrent,
            points=[(name, points[name]) for name in following["trials"]],
            folder=following["folder"],
            driver_resource=DRIVER_RESOURCE if setup.cluster.holds_drivers else "",
            failures=0 if setup.cluster.local else 3,
        )
        run_search(plan, Listener(self._trial_ended, lambda: self.watch.stop_wanted), setup.debug)
        self._raise_if_stalled()
        following["status"] = "cut" if self.watch.out_of_time.is_set() else "ended"
        self.save()

    def _trial_ended(self, trial: str, params: dict[str, Any], result: dict[str, Any], error: Any) -> None:
        self.watch.touch()
        names = short_names(params)
        shown = ", ".join(f"{names[key]}={_shown(value)}" for key, value in params.items())
        seen, whole = result.get("images_seen", 0), self.setup.base.train.epochs * self.setup.images_per_epoch
        value = result.get(self.setup.sweep.metric)
        text = "-" if value is None else f"{100 * value:.1f}%"
        record = load_json(join(self.setup.uri, "trials", trial, "run.json")) or {}
        if error is not None or record.get("status") == "failed":
            reason = str(record.get("reason") or error).strip().splitlines()[-1]
            how = f"[red]failed[/red] ({reason[:200]})"
        elif seen >= whole:
            how = f"{text} at the end"
        elif self.watch.out_of_time.is_set():
            self._cut.add(trial)
            how = f"{text}, cut by --max-hours after {100 * seen / whole:.0f}%"
        else:
            how = f"{text}, stopped by ASHA after {100 * seen / whole:.0f}%"
        self.board.ended(f"trial {trial}", f"trial {trial}: {shown}: {how}")

    def _collect(self) -> None:
        """Reads what every trial came to from its own directory, which also holds after a restart."""
        out_of_time = self.watch.out_of_time.is_set()
        self.fields["trials"] = collect(self.setup.uri, self.setup.sweep, self._cut, out_of_time)
        self.save()

    def choose(self) -> bool:
        """The winner: highest validation metric at the end of training, among the trials that reached it; False for none
        because time ran out before."""
        finished = [t for t in self.fields["trials"] if t["status"] == "finished" and t["last"] is not None]
        if not finished and self.watch.out_of_time.is_set():
            self.board.say("time is up before a trial reached the end; the same command continues")
            return False
        if not finished:
            reasons = {t["reason"] for t in self.fields["trials"] if t["status"] == "failed"}
            raise LtcoreError(
                f"No trial of {self.setup.sweep.name} reached the end, so there is no winner. "
                + (f"First reason: {sorted(reasons)[0]}" if reasons else "Give it more time (--max-hours).")
            )
        winner = max(finished, key=lambda t: (t["last"], t["id"]))
        self.fields |= {"winner": winner["id"], "baseline": "baseline"}
        shown = ", ".join(f"{key}={_shown(value)}" for key, value in winner["params"].items())
        self.board.say(f"winner on validation: trial {winner['id']} ({100 * winner['last']:.1f}%): {shown}")
        self.save()
        return True

    def _tell_schedule(self) -> None:
        """Population-based training ends with a course of values, which a retrain with one value would not repeat."""
        winner = next(t for t in self.fields["trials"] if t["id"] == self.fields["winner"])
        self.board.say("the winner is a schedule, not one setting, so it is not retrained; it held")
        for part in winner["schedule"]:
            shown = ", ".join(f"{key}={value}" for key, value in part.items() if key != "images_seen")
            self.board.say(f"  from image {part['images_seen']:,} on: {shown}")

    # ---- retrain and test

    def retrain(self) -> None:
        sweep, setup = self.setup.sweep, self.setup
        winner = next(t for t in self.fields["trials"] if t["id"] == self.fields["winner"])
        seeds = [setup.seed + 1 + k for k in range(sweep.retrain_seeds)]
        entries: list[dict[str, Any]] = [
            {"role": role, "seed": seed, "run_dir": f"retrain/{role}-seed{seed}"}
            for seed in seeds
            for role in ("winner", "baseline")
        ]
        jobs = {
            Path(e["run_dir"]).name: self._job(e["role"], e["seed"], "retrain", e["run_dir"], winner["params"])
            for e in entries
        }
        for job in jobs.values():
            _forget_other(job)
        with self.board.stage("retrain", expected=len(jobs)):
            first = f"winner-seed{seeds[0]}"
            if sweep.train_engine_retrain and setup.engine == "trial" and setup.cluster.local:
                self._run_all(jobs, streamed=first)
            else:
                self._run_all(jobs)
        self.fields["retrain"] = entries
        self.fields["comparison"] = self._compare(entries)
        self.save()

    def _compare(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Paired over seeds, per test split and metric."""
        tests: dict[str, dict[int, Any]] = {"winner": {}, "baseline": {}}
        for entry in entries:
            record = load_json(join(self.setup.uri, entry["run_dir"], "run.json"))
            assert record is not None, "a finished run has written its record"
            tests[entry["role"]][entry["seed"]] = record["test"]
        return compare(tests["winner"], tests["baseline"])

    # ---- single runs as Ray tasks

    def _job(self, role: str, seed: int, kind: str, where: str, params: dict[str, Any]) -> Job:
        changes: dict[str, Any] = {"seed": seed, "name": where.replace("/", "-")}
        changes |= TERMS_OFF if role == "baseline" else params
        return Job(
            config=dump(override(self.setup.base, changes)),
            data_uri=self.setup.data_uri,
            run_uri=join(self.setup.uri, where),
            info={
                "id": f"{self._id_prefix()}-{where.replace('/', '-')}",
                "kind": kind,
                "group": self.setup.sweep.name,
                "test": kind == "retrain",
            },
            cpus=self.setup.scaling.cpus_per_worker,
            pulse=self.pulse_name,
            shown_as=Path(where).name,
        )

    def _submit(self, job: Job, engine: str, scaling: Scaling) -> Any:
        options: dict[str, Any] = {"num_cpus": scaling.cpus_per_worker, "num_gpus": scaling.gpus_per_worker}
        if engine == "train":  # the task only drives; its workers reserve what they need
            options = {"num_cpus": 0, "num_gpus": 0}
            if self.setup.cluster.holds_drivers:
                options["resources"] = {DRIVER_RESOURCE: 0.01}
        return run_job.options(**options).remote(job.plain(), engine, scaling.plain())

    def _run_all(self, jobs: dict[str, Job], streamed: str = "") -> None:
        """As many at a time as there are real resources for: a local Ray counts more CPUs than there are.

        The job named ``streamed`` goes first, through Ray Data's stream tier and Ray Train with two workers: they take long
        to start, and the other runs use that time.
        """
        waiting = list(jobs.items())
        running: dict[Any, str] = {}
        if streamed:
            config = dump(override(from_dict(jobs[streamed].config), {"data.tier": "stream"}))
            job = dataclasses.replace(jobs[streamed], config=config, cpus=1)
            running[self._submit(job, "train", Scaling(workers=2))] = streamed
            waiting = [(name, job) for name, job in waiting if name != streamed]
        while waiting or running:
            while waiting and len(running) < max(self.setup.concurrent, 2 if streamed else 1):
                name, job = waiting.pop(0)
                running[self._submit(job, self.setup.engine, self.setup.scaling)] = name
            self._wait_any(running)

    def _wait_any(self, running: dict[Any, str]) -> None:
        """Takes finished runs out of ``running``; cancels everything where nothing moves any more."""
        ready, _ = ray.wait(list(running), timeout=1.0)
        for ref in ready:
            name = running.pop(ref)
            record = result_of(ref)
            self.watch.touch()
            tested = record.get("test", {})
            values = [v["top1"] for v in tested.values()] or [record["last"].get(self.setup.sweep.metric)]
            shown = ", ".join(f"{100 * v:.1f}%" for v in values if v is not None)
            where = f"test top-1 on {' and '.join(tested)}" if tested else "validation top-1"
            self.board.ended(name, f"{name}: {where} {shown}")
        if self.watch.stop_wanted:
            for ref in running:
                ray.cancel(ref, force=True)
            self._raise_if_stalled()
            if running:
                raise _TimeIsUp

    def _raise_if_stalled(self) -> None:
        if self.watch.stalled.is_set():
            free = ray.available_resources()
            raise StallError(
                f"Nothing happened for {self.setup.sweep.stall_s:g} s. One run needs {self.setup.need.describe()}; of "
                f"{self.setup.cluster.cpus:g} CPUs and {self.setup.cluster.gpus:g} GPUs, {free.get('CPU', 0):g} CPUs and "
                f"{free.get('GPU', 0):g} GPUs are free now. Everything was canceled; the same command continues."
            )

    def _id_prefix(self) -> str:
        return f"{self.setup.sweep.name}-{self.fields['config_hash'][:6]}"

    # ---- report

    def report(self) -> None:
        """Writes report.html beside sweep.json, and the sweep's own W&B run."""
        self.save()
        with self.board.stage("report"), tempfile.TemporaryDirectory() as scratch:
            folder = local_copy(self.setup.uri, Path(scratch))
            path = write_report(folder)
            if not is_local(self.setup.uri):
                write_bytes_atomic(join(self.setup.uri, "report.html"), path.read_bytes())
            self._log_sweep(folder, path)
            Mirror(join(self.setup.uri, "sweep"), folder / "sweep").close()

    def _log_sweep(self, folder: Path, report: Path) -> None:
        cfg = self.setup.base
        tracker = open_tracker(
            run_dir=folder / "sweep",
            run_id=f"{self._id_prefix()}-sweep",
            group=self.setup.sweep.name,
            name=f"{self.setup.sweep.name}-sweep",
            config_flat=self.fields["identity"],
            options=TrackerOptions(
                project=cfg.tracking.project, mode=cfg.tracking.wandb_mode, tensorboard=False, wandb=cfg.tracking.wandb
            ),
            job_type="sweep",
        )
        keys = list(self.setup.sweep.space)
        ranked = sorted(self.fields["trials"], key=lambda t: -(t["last"] if t["last"] is not None else -1.0))
        rows = [
            [t["id"], t["status"], *(t["params"][k] for k in keys), t["last"], t["best"], t["epochs_done"]]
            for t in ranked
        ]
        tracker.table("trials", ["trial", "status", *keys, "last", "best", "epochs"], rows)
        tracker.html("report", report)
        flat_summary = {
            f"{split}/{metric}/{field}": value
            for split, metrics in self.fields.get("comparison", {}).items()
            for metric, values in metrics.items()
            for field, value in values.items()
            if field in ("difference", "low", "high")
        }
        tracker.finish({"winner": self.fields.get("winner", ""), **flat_summary}, str(self.fields["status"]))


def _forget_other(job: Job) -> None:
    """Trials that were added may have made another winner: a retrain of the one before makes room."""
    record = load_json(join(job.run_uri, "run.json"))
    wanted = {k: v for k, v in trees.flatten(job.config).items() if k.startswith(("objective.", "train.", "seed"))}
    if record is not None and any(record["config"].get(key) != value for key, value in wanted.items()):
        forget(job.run_uri)


class _TimeIsUp(Exception):  # noqa: N818  (no error)
    """--max-hours have passed, and runs that were still going were ended."""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
