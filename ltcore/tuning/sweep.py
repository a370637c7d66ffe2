"""A sweep from start to report: search beside a baseline, choice on validation, paired retrains, one test, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ltcore.config.load import dump, grace_fraction, latest_start, override
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import LtcoreError
from ltcore.evaluation.paired import compare
from ltcore.hashing import hash64
from ltcore.reporting.format import short_names
from ltcore.runtime.cluster import DRIVER_RESOURCE, nodes_are_coming
from ltcore.runtime.heartbeat import Watchdog, start_heartbeat
from ltcore.runtime.progress import ProgressDisplay
from ltcore.storage import join, read_json, write_json
from ltcore.training.hardware import describe_hardware
from ltcore.tuning.identity import identity_hash
from ltcore.tuning.node_hours import NodeHours
from ltcore.tuning.report import report
from ltcore.tuning.rungs import Cohort, Course, Record, ranked, rungs, standing
from ltcore.tuning.runs import Runs, SweepSetup, TimeIsUp, forget_other
from ltcore.tuning.search import Ears, SearchPlan, run_course, run_population
from ltcore.tuning.shared_start import FOLDER, LEAST_IMAGES, start_epochs
from ltcore.tuning.tpe import batch_size, past_of, suggest
from ltcore.tuning.trials import TrialBook, collect, known_trials, last_values, name_of, read_records, where
from ltcore.version import code_version


class Sweep:
    """One execution of a sweep; everything that must survive it is in ``sweep.json`` and the run directories."""

    def __init__(self, setup: SweepSetup, fields: dict[str, Any], display: ProgressDisplay) -> None:
        self.setup, self.display = setup, display
        self.state_uri = join(setup.uri, "sweep.json")
        self.fields: dict[str, Any] = {
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
            "sizes": [],
            "rungs": [],
            "suggested": [],
            "forked": {},
            "populations": 0,
            **(read_json(self.state_uri) or {}),
        }
        self.fields |= {
            "status": "running",
            "reason": "",
            "num_trials": setup.sweep.size,
            "hardware": describe_hardware() | {"cluster": setup.cluster.describe()},
            "engine": setup.placement.engine,
        }
        if setup.sweep.size not in self.fields["sizes"]:  # new, or trials are added to a finished sweep
            self.fields["sizes"].append(setup.sweep.size)
            self.fields["identity"] = fields
        self.fields["stages_before"] = self.fields["stages"]  # of the interrupted sweep that this one continues
        self.meter = NodeHours(self.fields.get("node_hours", {}))
        self._lost: dict[str, str] = {}
        """Trials whose process died for the last time, with Ray's words."""
        name = f"heartbeat-{self.fields['config_hash'][:12]}-{time.time_ns()}"
        self.heartbeat_name, self.nonce = name, secrets.token_hex(16)
        self._pulse = start_heartbeat(name, self.nonce)
        deadline = None if setup.max_hours is None else setup.max_hours * 3600
        self.watch = Watchdog(
            self._pulse,
            display.update,
            stall_s=setup.sweep.stall_s,
            deadline_s=deadline,
            nodes_are_coming=partial(nodes_are_coming, setup.cluster),
        )
        self.runs = Runs(setup, display, self.watch, name, self.nonce, self.id_prefix)

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
            report(self.setup, self.fields, self.display, self.id_prefix)
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
        now = {k: round(before.get(k, 0.0) + v, 1) for k, v in self.display.stages.items()}
        self.fields["stages"] = {**before, **now}
        self.fields["node_hours"] = self.meter.hours()
        self.fields["most_nodes"] = max(self.fields.get("most_nodes", 0), self.meter.most_nodes)
        write_json(self.state_uri, self.fields)

    # ---- search

    def search(self) -> None:
        setup = self.setup
        with self.display.stage("search", expected=setup.sweep.size + 1):
            job = self.runs.job("baseline", setup.seed, "baseline", "trials/baseline", {})
            baseline = {self.runs.submit(job): "baseline"}
            with contextlib.suppress(TimeIsUp):
                if setup.sweep.search == "pbt":
                    self._search_population()
                else:
                    self._search_cohorts()
                while baseline:
                    self.runs.wait_any(baseline)
        self._collect()

    def _search_cohorts(self) -> None:
        for number, points in enumerate(self._known()):
            self._share_start(number, points)
        course = Course(self._cohorts())
        if not course.over:
            run_course(self._plan(), course, Ears(lambda: self.watch.stop_wanted, self._lost.__setitem__))
            self.runs.raise_if_stalled()

    def _search_population(self) -> None:
        """Goes on with the members that came to no end, each with the values that it had last."""
        setup, points = self.setup, self._points()
        records = read_records(setup.uri, points)
        left = {
            name: last_values(points[name], record) for name, record in records.items() if standing(record) == "open"
        }
        if not left:
            return
        self.fields["populations"] += 1
        self.save()
        run_population(
            self._plan(),
            setup.sweep,
            left,
            total_images=setup.base.train.epochs * setup.images_per_epoch,
            sweep_uri=setup.uri,
            folder=f"tune-{self.fields['populations']}",
            ears=Ears(lambda: self.watch.stop_wanted, self._lost.__setitem__, self._member_ended),
        )
        self.runs.raise_if_stalled()

    def _known(self) -> list[dict[str, dict[str, Any]]]:
        """The cohorts whose parameters are known beforehand; those of search=tpe come one after another."""
        setup = self.setup
        return [] if setup.sweep.search == "tpe" else known_trials(setup.sweep, setup.seed, self.fields["sizes"])

    def _points(self) -> dict[str, dict[str, Any]]:
        """Name -> parameters of every trial that is known of by now."""
        return {name: params for cohort in self._known() or self.fields["suggested"] for name, params in cohort.items()}

    def _cohorts(self) -> Iterator[Cohort]:
        setup = self.setup
        sweep, grace = setup.sweep, grace_fraction(setup.sweep, setup.base)
        start, _ = latest_start(sweep, setup.base)
        book = TrialBook(
            setup.uri, setup.base, sweep.metric, start, self.fields["rungs"], self._decided, self._part_ended
        )
        for number, points in enumerate(self._suggested() if sweep.search == "tpe" else self._known()):
            yield Cohort(number, points, rungs(len(points), grace, sweep.reduction_factor), book)

    def _suggested(self) -> Iterator[dict[str, dict[str, Any]]]:
        """The batches of search=tpe; a new one is written down before it is run."""
        sweep, batches = self.setup.sweep, self.fields["suggested"]
        size = batch_size(sweep.num_trials)
        for first in range(0, sweep.num_trials, size):
            number = first // size
            if number == len(batches):
                past = [
                    past_of(record, sweep.metric) for record in read_records(self.setup.uri, self._points()).values()
                ]
                found = suggest(
                    sweep.space,
                    past,
                    count=min(size, sweep.num_trials - first),
                    seed=hash64(self.setup.seed, "tpe", number) % 2**32,
                )
                batches.append({name_of(first + i): params for i, params in enumerate(found)})
                self.save()
            yield batches[number]

    def _share_start(self, number: int, points: dict[str, dict[str, Any]]) -> None:
        """Trains the epochs that the trials of a cohort have in common, once; they start from its checkpoint."""
        setup, folder = self.setup, FOLDER if number == 0 else f"{FOLDER}-{number + 1}"
        if not setup.sweep.share_start or setup.placement.scaling.most > 1 or folder in self.fields["forked"].values():
            return
        records = read_records(setup.uri, points)
        names = [name for name in points if records[name] is None]
        configs = [override(setup.base, points[name]) for name in names]
        stats = read_manifest(setup.data_uri).stats(setup.base.data.train_split)
        epochs, shares = start_epochs(setup.base, configs, stats)
        sharing = [name for name, same in zip(names, shares, strict=True) if same]
        if len(sharing) < 2 or epochs * setup.images_per_epoch < LEAST_IMAGES:
            return
        job = self.runs.job("trial", setup.seed, "trial", folder, {})
        job = dataclasses.replace(job, info={**job.info, "kind": "shared_start", "until": epochs})
        self.display.say(f"{len(sharing)} trials share their first {epochs} epochs, before any term acts: trained once")
        self.runs.run_all({folder: job}, engine="trial")
        record = read_json(join(setup.uri, folder, "run.json"))
        assert record is not None, "it has run"
        self.fields["forked"] |= dict.fromkeys(sharing, folder)
        before = self.fields.get("shared_start", {"trials": 0, "saved_s": 0.0})
        saved_s = round(before["saved_s"] + record["seconds"] * (len(sharing) - 1), 1)
        shared = {"epochs": epochs, "trials": before["trials"] + len(sharing), "saved_s": saved_s}
        self.fields["shared_start"] = shared
        self.save()

    def _plan(self) -> SearchPlan:
        setup = self.setup
        return SearchPlan(
            trial={
                "config": dump(setup.base),
                "data_uri": setup.data_uri,
                "sweep_uri": setup.uri,
                "id_prefix": self.id_prefix,
                "group": setup.sweep.name,
                "scaling": setup.placement.scaling.plain(),
                "engine": setup.placement.engine,
                "mutable": list(setup.sweep.mutable) if setup.sweep.search == "pbt" else [],
                "members": [],
                "heartbeat": self.heartbeat_name,
                "nonce": self.nonce,
                "code": code_version(),
                "forked": {name: join(setup.uri, folder) for name, folder in self.fields["forked"].items()},
            },
            scaling=setup.placement.scaling,
            engine=setup.placement.engine,
            concurrent=setup.placement.concurrent,
            driver_resource=DRIVER_RESOURCE if setup.cluster.holds_drivers else "",
            debug=setup.debug,
        )

    def _member_ended(self, trial: str) -> None:
        record = read_json(where(self.setup.uri, trial))
        self._part_ended(trial, last_values(self._points()[trial], record), standing(record), record)

    def _part_ended(self, trial: str, params: Mapping[str, Any], state: str, record: Record | None) -> None:
        """Says how far the trial has come, and why it came no further."""
        self.watch.touch()
        names = short_names(params)
        shown = ", ".join(f"{names[key]}={_shown(value)}" for key, value in params.items())
        value = None if record is None else record["last"].get(self.setup.sweep.metric)
        text = "-" if value is None else f"{100 * value:.1f}%"
        if state == "there":
            assert record is not None, "it says where the trial stands"
            self.display.rest(f"trial {trial}")
            self.display.say(
                f"trial {trial}: {shown}: {text} after epoch {record['epochs_done']}, waits for the others"
            )
            return
        how, style = f"{text} at the end", ""
        if record is not None and record["status"] == "failed":
            how, style = f"failed ({_last_line(record['reason'])})", "red"
        elif trial in self._lost:
            how, style = f"lost with its process ({self._lost[trial]})", "red"
        elif state == "open":
            how = f"{text}, cut short; the same command goes on with it"
        self.display.ended(f"trial {trial}", f"trial {trial}: {shown}: ", (how, style))

    def _decided(self, decision: dict[str, Any]) -> None:
        self.save()
        places = decision["trials"]
        on = [place["id"] for place in places if place["goes_on"]]
        for place in places[len(on) :]:
            self.display.ended(f"trial {place['id']}")
        self.display.say(
            f"compared after epoch {places[0]['epoch']}: {len(on)} of {len(places)} trials go on ({', '.join(on)})"
        )

    def _collect(self) -> None:
        """Reads what every trial came to from its own directory, which also holds after a restart."""
        setup, late = self.setup, self.watch.out_of_time.is_set()
        self.fields["trials"] = collect(setup.uri, setup.sweep, self._points(), self._lost, out_of_time=late)
        self.save()

    def choose(self) -> bool:
        """The winner: highest validation metric at the end of training, among the trials that reached it; False for none
        because time ran out before. LtcoreError while a trial is left that came to no end, which might have won."""
        trials = self.fields["trials"]
        settled = [t for t in trials if standing(t) != "open"]
        if len(settled) < self.setup.sweep.size:
            if self.watch.out_of_time.is_set():
                self.display.say("time is up before every trial came to its end; the same command continues")
                return False
            raise LtcoreError(self._why_open([t for t in trials if standing(t) == "open"]))
        finished = {t["id"]: t for t in settled if t["status"] == "finished" and t["last"] is not None}
        if not finished:
            reasons = sorted({t["reason"] for t in settled if t["status"] == "failed"})
            raise LtcoreError(
                f"No trial of {self.setup.sweep.name} reached the end, so there is no winner. First reason: {reasons[0]}"
            )
        winner = finished[ranked({name: t["last"] for name, t in finished.items()})[0]]
        self.fields |= {"winner": winner["id"], "baseline": "baseline"}
        shown = ", ".join(f"{key}={_shown(value)}" for key, value in winner["params"].items())
        self.display.say(f"winner on validation: trial {winner['id']} ({100 * winner['last']:.1f}%): {shown}")
        self.save()
        return True

    def _why_open(self, open_trials: Sequence[Mapping[str, Any]]) -> str:
        size = self.setup.sweep.size
        failed = [f"{t['id']} ({_last_line(t['reason'])})" for t in open_trials if t["status"] == "failed"]
        failed = failed or [f"{t['id']} (without a word)" for t in open_trials]
        return (
            f"{len(failed)} of {size} trials of {self.setup.sweep.name} failed of what may have gone by now, so no winner is "
            f"chosen without them: {'; '.join(failed[:3])}{'; ...' if len(failed) > 3 else ''}. The same command runs them "
            "again and keeps the others."
        )

    def _tell_schedule(self) -> None:
        """Population-based training ends with a course of values, which a retrain with one value would not repeat."""
        winner = next(t for t in self.fields["trials"] if t["id"] == self.fields["winner"])
        self.display.say("the winner is a schedule, not one setting, so it is not retrained; it held")
        for part in winner["schedule"]:
            shown = ", ".join(f"{key}={value}" for key, value in part.items() if key != "images_seen")
            self.display.say(f"  from image {part['images_seen']:,} on: {shown}")

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
        with self.display.stage("retrain", expected=len(jobs)):
            first = f"winner-seed{seeds[0]}"
            if (
                sweep.train_engine_retrain
                and setup.placement.engine == "trial"
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
            record = read_json(join(self.setup.uri, entry["run_dir"], "run.json"))
            assert record is not None, "a finished run has written its record"
            tests[entry["role"]][entry["seed"]] = record["test"]
        return compare(tests["winner"], tests["baseline"])


def _last_line(reason: str) -> str:
    return reason.strip().splitlines()[-1][:300]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
