"""A sweep from start to report: search beside a baseline, choice on validation, paired retrains, one test, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ltcore.config.load import dump, grace_fraction, override
from ltcore.data.manifest import read_manifest
from ltcore.data.storage import join
from ltcore.errors import LtcoreError
from ltcore.evaluation.paired import compare
from ltcore.runtime.board import Board
from ltcore.runtime.cluster import DRIVER_RESOURCE, nodes_are_coming
from ltcore.runtime.files import load_json, save_json
from ltcore.runtime.identity import identity_hash
from ltcore.runtime.meter import NodeMeter
from ltcore.runtime.prefix import FOLDER, LEAST_IMAGES, start_epochs
from ltcore.runtime.pulse import Watch, start_pulse
from ltcore.runtime.search import TUNE_DIR, Listener, SearchPlan, run_search
from ltcore.runtime.sweep_report import report
from ltcore.runtime.sweep_runs import Runs, SweepSetup, TimeIsUp, forget_other
from ltcore.runtime.trials import collect, failed_entry, known_trials, settled
from ltcore.runtime.version import code_version
from ltcore.tracking.records import short_names
from ltcore.training.hardware import describe_hardware


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
            "unborn": {},
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
        self.fields["stages_before"] = self.fields["stages"]  # of the interrupted sweep that this one continues
        self.meter = NodeMeter(self.fields.get("node_hours", {}))
        self._cut: set[str] = set()
        """Trials that the time limit ended."""
        name = f"pulse-{self.fields['config_hash'][:12]}-{time.time_ns()}"
        self.pulse_name, self.nonce = name, secrets.token_hex(16)
        self._pulse = start_pulse(name, self.nonce)
        deadline = None if setup.max_hours is None else setup.max_hours * 3600
        self.watch = Watch(
            self._pulse,
            board.update,
            stall_s=setup.sweep.stall_s,
            deadline_s=deadline,
            nodes_are_coming=partial(nodes_are_coming, setup.cluster),
        )
        self.runs = Runs(setup, board, self.watch, name, self.nonce, self.id_prefix)

    @property
    def id_prefix(self) -> str:
        """Start of the ids of all its runs."""
        return f"{self.setup.sweep.name}-{self.fields['config_hash'][:6]}"

    # ---- the whole

    def run(self) -> dict[str, Any]:
        self.save()
        self.watch.start()
        self.meter.start()
        try:
            self.search()
            if self.choose() and not self.watch.out_of_time.is_set():
                if self.setup.sweep.search == "pbt":
                    self._tell_schedule()
                elif self.setup.sweep.retrain_seeds:
                    with contextlib.suppress(TimeIsUp):
                        self.retrain()
            self.fields["status"] = "stopped" if self.watch.out_of_time.is_set() else "finished"
            self.save()
            report(self.setup, self.fields, self.board, self.id_prefix)
        except BaseException as error:
            self.fields["status"] = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.fields["reason"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.watch.end()
            self.meter.end()
            self.fields["finished_at"] = _now()
            self.save()
        return self.fields

    def save(self) -> None:
        before = self.fields["stages_before"]
        now = {k: round(before.get(k, 0.0) + v, 1) for k, v in self.board.stages.items()}
        self.fields["stages"] = {**before, **now}
        self.fields["node_hours"] = self.meter.hours()
        self.fields["most_nodes"] = max(self.fields.get("most_nodes", 0), self.meter.most_nodes)
        save_json(self.state_uri, self.fields)

    # ---- search

    def search(self) -> None:
        setup = self.setup
        with self.board.stage("search", expected=setup.sweep.size + 1):
            job = self.runs.job("baseline", setup.seed, "baseline", "trials/baseline", {})
            baseline = {self.runs.submit(job, setup.engine, setup.scaling): "baseline"}
            following = self._next_search()
            with contextlib.suppress(TimeIsUp):
                if following is not None:
                    self._share_start(following)
                    self._search(following)
                while baseline:
                    self.runs.wait_any(baseline)
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
        searches.append({"folder": folder, "trials": left, "forked": [], "status": "running"})
        self.save()
        return searches[-1]

    def _share_start(self, following: dict[str, Any]) -> None:
        """Trains the epochs that the trials have in common, once; they start from its checkpoint."""
        setup = self.setup
        points = {name: self._points()[name] for name in following["trials"]}
        if not setup.sweep.share_start or following["forked"] or len(points) < 2 or setup.scaling.most > 1:
            return
        configs = [override(setup.base, params) for params in points.values()]
        epochs, shares = start_epochs(
            setup.base, configs, read_manifest(setup.data_uri).stats(setup.base.data.train_split)
        )
        sharing = [name for name, same in zip(points, shares, strict=True) if same]
        if len(sharing) < 2 or epochs * setup.images_per_epoch < LEAST_IMAGES:
            return
        job = self.runs.job("trial", setup.seed, "trial", FOLDER, {})
        job = dataclasses.replace(job, stop_after_epochs=epochs, info={**job.info, "kind": "shared_start"})
        self.board.say(f"{len(sharing)} trials share their first {epochs} epochs, before any term acts: trained once")
        self.runs.run_all({FOLDER: job}, engine="trial")
        record = load_json(join(setup.uri, FOLDER, "run.json"))
        assert record is not None, "it has run"
        following["forked"] = sharing
        saved_s = round(record["seconds"] * (len(sharing) - 1), 1)
        self.fields["shared_start"] = {"epochs": epochs, "trials": len(sharing), "saved_s": saved_s}
        self.save()

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
                "id_prefix": self.id_prefix,
                "group": setup.sweep.name,
                "scaling": setup.scaling.plain(),
                "engine": setup.engine,
                "hot": list(setup.sweep.hot) if setup.sweep.search == "pbt" else [],
                "pulse": self.pulse_name,
                "nonce": self.nonce,
                "code": code_version(),
                "fork_of": join(setup.uri, FOLDER),
                "forked": following["forked"],
            },
            scaling=setup.scaling,
            engine=setup.engine,
            total_images=setup.base.train.epochs * setup.images_per_epoch,
            grace_fraction=grace_fraction(setup.sweep, setup.base),
            concurrent=setup.concurrent,
            points=[(name, points[name]) for name in following["trials"]],
            folder=following["folder"],
            driver_resource=DRIVER_RESOURCE if setup.cluster.holds_drivers else "",
            failures=0 if setup.cluster.local else 3,
        )
        run_search(plan, Listener(self._trial_ended, lambda: self.watch.stop_wanted), setup.debug)
        self.runs.raise_if_stalled()
        following["status"] = "cut" if self.watch.out_of_time.is_set() else "ended"
        self.save()

    def _trial_ended(self, trial: str, params: dict[str, Any], result: dict[str, Any], error: Any) -> None:
        self.watch.touch()
        names = short_names(params)
        shown = ", ".join(f"{names[key]}={_shown(value)}" for key, value in params.items())
        seen, whole = result.get("images_seen", 0), self.setup.base.train.epochs * self.setup.images_per_epoch
        value = result.get(self.setup.sweep.metric)
        text, style = "-" if value is None else f"{100 * value:.1f}%", ""
        record = load_json(join(self.setup.uri, "trials", trial, "run.json")) or {}
        if error is not None or record.get("status") == "failed":
            reason = str(record.get("reason") or error).strip().splitlines()[-1]
            how, style = f"failed ({reason[:200]})", "red"
            if not record:
                self.fields["unborn"][trial] = failed_entry(trial, params, reason)
        elif seen >= whole:
            how = f"{text} at the end"
        elif self.watch.out_of_time.is_set():
            self._cut.add(trial)
            how = f"{text}, cut by --max-hours after {100 * seen / whole:.0f}%"
        else:
            how = f"{text}, stopped by ASHA after {100 * seen / whole:.0f}%"
        self.board.ended(f"trial {trial}", f"trial {trial}: {shown}: ", (how, style))

    def _collect(self) -> None:
        """Reads what every trial came to from its own directory, which also holds after a restart."""
        out_of_time = self.watch.out_of_time.is_set()
        self.fields["trials"] = collect(self.setup.uri, self.setup.sweep, self._cut, out_of_time, self.fields["unborn"])
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
            Path(e["run_dir"]).name: self.runs.job(e["role"], e["seed"], "retrain", e["run_dir"], winner["params"])
            for e in entries
        }
        for job in jobs.values():
            forget_other(job)
        with self.board.stage("retrain", expected=len(jobs)):
            first = f"winner-seed{seeds[0]}"
            if (
                sweep.train_engine_retrain
                and setup.engine == "trial"
                and setup.cluster.local
                and not setup.cluster.gpus
            ):
                self.runs.run_all(jobs, streamed=first)
            else:
                self.runs.run_all(jobs)
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


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
