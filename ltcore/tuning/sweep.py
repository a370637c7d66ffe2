"""A sweep from start to report: search beside a baseline, choice on validation, paired retrains, one test, one report."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ltcore.config.json_record import RecordFile
from ltcore.config.load import grace_fraction, latest_start
from ltcore.config.records import RungDecision, RunRecord, SharedStart, SweepRecord, TrialRecord, now
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import GpuShareError
from ltcore.evaluation.catalog import minimized
from ltcore.hashing import hash64
from ltcore.lease import check_held, is_lost
from ltcore.reporting.summary import ranked
from ltcore.runtime.heartbeat import Watchdog, start_heartbeat
from ltcore.runtime.interrupts import saving_first
from ltcore.runtime.progress import ProgressDisplay
from ltcore.runtime.ray_task import awaited
from ltcore.storage import join, remove
from ltcore.text import counted
from ltcore.tuning.ablation import terms_off
from ltcore.tuning.messages import end_of_part, params_text, short
from ltcore.tuning.node_hours import NodeHours
from ltcore.tuning.record import opened
from ltcore.tuning.report import report
from ltcore.tuning.retrains import Retrains
from ltcore.tuning.rungs import Cohort, Course, rungs, standing
from ltcore.tuning.runs import Runs, SweepSetup, TimeIsUp
from ltcore.tuning.search import LOST, LOST_ON_CLUSTERS, Ears, SearchPlan, run_course, run_population
from ltcore.tuning.shared_start import FOLDER, LEAST_IMAGES, start_epochs
from ltcore.tuning.tpe import batch_size, past_of, suggest
from ltcore.tuning.trainable import TrialPlan, label_of
from ltcore.tuning.trials import TrialBook, collect, folder_of, known_trials, last_values, name_of, read_records
from ltcore.tuning.weights import noted_hashes
from ltcore.tuning.winner import num_settled, winner_of

Points = Mapping[str, Mapping[str, Any]]
"""Name -> parameters of trials."""


class Sweep:
    """One execution of a sweep; everything that must survive it is in ``sweep.json`` and the run directories."""

    def __init__(self, setup: SweepSetup, identity: dict[str, Any], display: ProgressDisplay) -> None:
        self.setup, self.display = setup, display
        self.file = RecordFile(setup.uri, opened(setup, identity), partial(check_held, setup.uri))
        self.meter = NodeHours(self.record.node_hours)
        self._lost: dict[str, str] = {}
        """Trials whose process died for the last time, with Ray's words."""
        self._barred: set[str] = set()
        """Trials that cannot begin, as what they start from has failed for good; ``_lost`` has the words."""
        self.heartbeat_name = f"heartbeat-{self.record.config_hash[:12]}-{time.time_ns()}"
        self.nonce = secrets.token_hex(16)
        self.watch = Watchdog(
            start_heartbeat(self.heartbeat_name, self.nonce),
            display.update,
            stall_s=setup.placement.silence_s(setup.sweep.stall_s),
            deadline_s=None if setup.max_hours is None else setup.max_hours * 3600,
            say=display.say,
            waited_for=None if setup.cluster.local else partial(awaited, setup.placement.demand, setup.cluster),
        )
        self.runs = Runs(setup, display, self.watch, self.heartbeat_name, self.nonce, self.id_prefix)

    @property
    def record(self) -> SweepRecord:
        """Returns what is written to ``sweep.json``."""
        return self.file.value

    @property
    def id_prefix(self) -> str:
        """Returns the start of the ids of all its runs."""
        return f"{self.setup.sweep.name}-{self.record.config_hash[:6]}"

    # ---- the whole

    def run(self) -> SweepRecord:
        """Runs all stages and returns the record.

        What ends the sweep early is written there before it is raised again.
        """
        self.save()
        self.watch.start()
        self.meter.start()
        ended: dict[str, Any] = {}
        try:
            self._stages()
            self._check_weights(self._retrained())
            status = "stopped" if self.watch.out_of_time.is_set() else "finished"
            outcome: dict[str, Any] = {"status": status, "finished_at": now()}
            # A sweep that is called finished is not opened again, so it is not called that before its report is there.
            report(self.setup, replace(self.record, **outcome), self.display, self.id_prefix)
            self.save(**outcome)
        except BaseException as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            ended = {"status": status, "reason": f"{type(error).__name__}: {error}"}
            if isinstance(error, GpuShareError) and self.setup.chose_part:
                ended["gpu_share"] = self.setup.with_whole_gpus("another run").gpu_share  # for the command that goes on
            self.runs.cancel()
            raise
        finally:
            self.watch.end()
            self.meter.end()
            self.save(finished_at=now(), **ended)
        return self.record

    def _stages(self) -> None:
        self.search()
        if not self.choose() or self.watch.out_of_time.is_set():
            return
        if self.setup.sweep.search == "pbt":
            self._tell_schedule()
        elif self.setup.sweep.retrain_seeds:
            with saving_first(self.watch, self.display.say), contextlib.suppress(TimeIsUp):
                self.retrain()

    def save(self, **fields: Any) -> None:
        """Writes ``sweep.json`` with these fields replaced, and with what was spent so far."""
        before = self.record.stages_before
        spent = {k: round(before.get(k, 0.0) + v, 1) for k, v in self.display.stages.items()}
        self.file.update(
            stages={**before, **spent},
            node_hours=self.meter.hours(),
            most_nodes=max(self.record.most_nodes, self.meter.most_nodes),
            **fields,
        )

    # ---- search

    def search(self) -> None:
        setup = self.setup
        with self.display.stage("search", expected=setup.num_trials + 1), saving_first(self.watch, self.display.say):
            job = self.runs.job("trials/baseline", setup.seed, "baseline", terms_off())
            self.runs.beside = {self.runs.submit(job): "baseline"}
            with contextlib.suppress(TimeIsUp):
                if setup.sweep.search == "pbt":
                    self._search_population()
                else:
                    self._search_cohorts()
            with contextlib.suppress(TimeIsUp):
                while self.runs.beside:
                    self.runs.wait_any(self.runs.beside)
        self._collect()

    def _search_cohorts(self) -> None:
        for number, points in enumerate(self._known()):
            self._share_start(number, points)
        while not (course := Course(self._cohorts())).over:
            run_course(self._plan(), course, self._ears())
            self.runs.raise_if_over()
            if not self._unshare(self._points()):
                break

    def _unshare(self, trials: Iterable[str]) -> bool:
        """Gives whole GPUs from now on where the chosen part was too small for one of these trials; tells whether it was."""
        setup = self.setup
        if not setup.chose_part:
            return False
        records = read_records(setup.uri, trials).values()
        short = [record.name for record in records if record is not None and record.short_of_gpu is not None]
        if not short:
            return False
        self.setup = self.runs.setup = setup.with_whole_gpus(short[0])
        assert self.setup.gpu_share is not None, "it was replaced"
        self.display.say(f"{self.setup.gpu_share.text}; runs that failed so go on with it")
        self.save(gpu_share=self.setup.gpu_share)
        return True

    def _ears(self) -> Ears:
        return Ears(self.watch.saving.is_set, self._stop_wanted, self._note_loss)

    def _stop_wanted(self) -> bool:
        """Answers what Tune asks all the time, and sees after the baseline meanwhile."""
        self.runs.move_beside()
        return self.watch.stop_wanted or is_lost(self.setup.uri)

    def _note_loss(self, trial: str, words: str) -> None:
        self._lost[trial] = words
        self.watch.lost(label_of(trial))  # it cannot say itself that it is over, and would count as one that hangs

    def _search_population(self) -> None:
        """Continues the members that did not finish, each with its last values."""
        setup, points = self.setup, self._points()
        records = read_records(setup.uri, points)
        left = {
            name: last_values(points[name], record) for name, record in records.items() if standing(record) == "open"
        }
        if not left:
            return
        self.save(populations=self.record.populations + 1)  # which another process that took over would refuse
        for ended in (f"tune-{n}" for n in range(1, self.record.populations)):  # of commands that were killed
            remove(join(setup.uri, ended))
        folder = f"tune-{self.record.populations}"
        run_population(
            self._plan(),
            setup.sweep,
            left,
            total_images=setup.base.train.epochs * setup.images_per_epoch,
            sweep_uri=setup.uri,
            folder=folder,
            ears=replace(self._ears(), ended=partial(self._member_ended, points)),
        )
        check_held(setup.uri)
        remove(join(setup.uri, folder))  # the next population starts from the trials themselves
        self.runs.raise_if_over()
        if self._unshare(points):
            self._search_population()

    def _known(self) -> Sequence[Points]:
        """Returns the cohorts whose parameters are known beforehand; those of search=tpe come one after another."""
        setup = self.setup
        return (
            []
            if setup.sweep.search == "tpe"
            else known_trials(setup.sweep, setup.seed, self.record.sizes, self.record.cut_from)
        )

    def _points(self) -> Points:
        """Returns the trials that are known so far."""
        return {name: params for cohort in self._known() or self.record.suggested for name, params in cohort.items()}

    def _cohorts(self) -> Iterator[Cohort]:
        setup = self.setup
        sweep, grace = setup.sweep, grace_fraction(setup.sweep, setup.base)
        start, _ = latest_start(sweep, setup.base)
        book = TrialBook(setup.uri, setup.base, sweep.metric, start, self.record.rungs, self._decided, self._part_ended)
        for number, points in enumerate(self._suggested() if sweep.search == "tpe" else self._known()):
            yield Cohort(number, points, rungs(len(points), grace, sweep.reduction_factor), book)

    def _suggested(self) -> Iterator[Points]:
        """Yields the batches of search=tpe; a new one is written down before it is run."""
        num_trials, size = self.setup.num_trials, batch_size(self.setup.sweep.num_trials)
        for number, first in enumerate(range(0, num_trials, size)):
            if number == len(self.record.suggested):
                batch = self._suggest(number, first, min(size, num_trials - first))
                self.save(suggested=(*self.record.suggested, batch))
            yield self.record.suggested[number]

    def _suggest(self, number: int, first: int, count: int) -> Points:
        sweep = self.setup.sweep
        points = self._points()
        records = read_records(self.setup.uri, points)
        past = [past_of(points[name], record, sweep.metric) for name, record in records.items()]
        seed = hash64(self.setup.seed, "tpe", number) % 2**32
        found = suggest(sweep.space, past, count=count, seed=seed, minimize=minimized(sweep.metric))
        return {name_of(first + i): params for i, params in enumerate(found)}

    def _share_start(self, number: int, points: Points) -> None:
        """Trains the epochs that the trials of a cohort have in common, once; they start from its checkpoint."""
        setup, folder = self.setup, FOLDER if number == 0 else f"{FOLDER}-{number + 1}"
        if not setup.sweep.share_start or setup.placement.scaling.most > 1 or folder in self.record.forked.values():
            return
        records = read_records(setup.uri, points)
        names = [name for name in points if records[name] is None]
        configs = [setup.base.replace(points[name]) for name in names]
        stats = read_manifest(setup.data_uri).stats(setup.base.data.train_split)
        epochs, shares = start_epochs(setup.base, configs, stats)
        sharing = [name for name, same in zip(names, shares, strict=True) if same]
        if len(sharing) < 2 or epochs * setup.images_per_epoch < LEAST_IMAGES:
            return
        job = self.runs.job(folder, setup.seed, "trial", {})
        job = replace(job, info=replace(job.info, kind="shared_start", until=epochs))
        self.display.say(
            f"{counted(len(sharing), 'trial')} share their first {counted(epochs, 'epoch')}, before any term acts: trained once"
        )
        self.runs.run_all({folder: job}, engine="trial")
        record = RunRecord.read(job.run_uri)
        assert record is not None and record.seconds is not None, "it has run"
        before = self.record.shared_start or SharedStart(epochs=epochs, trials=0, saved_s=0.0)
        saved_s = round(before.saved_s + record.seconds * (len(sharing) - 1), 1)
        self.save(
            forked={**self.record.forked, **dict.fromkeys(sharing, folder)},
            shared_start=SharedStart(epochs=epochs, trials=before.trials + len(sharing), saved_s=saved_s),
        )

    def _plan(self) -> SearchPlan:
        setup = self.setup
        return SearchPlan(
            trial=TrialPlan(
                config=setup.base.to_dict(),
                data_uri=setup.data_uri,
                sweep_uri=setup.uri,
                id_prefix=self.id_prefix,
                group=setup.sweep.name,
                scaling=setup.placement.scaling,
                engine=setup.placement.engine,
                mutable=setup.sweep.mutable if setup.sweep.search == "pbt" else (),
                heartbeat=self.heartbeat_name,
                nonce=self.nonce,
                own_input=setup.own_input,
                forked={name: join(setup.uri, folder) for name, folder in self.record.forked.items()},
            ),
            concurrent=setup.placement.concurrent,
            lost_limit=LOST if setup.cluster.local else LOST_ON_CLUSTERS,
            debug=setup.debug,
        )

    def _member_ended(self, points: Points, trial: str) -> None:
        record = RunRecord.read(folder_of(self.setup.uri, trial))
        self._part_ended(trial, last_values(points[trial], record), standing(record), record)

    def _part_ended(self, trial: str, params: Mapping[str, Any], state: str, record: RunRecord | None) -> None:
        """Says how far the trial has come, and why it stopped there."""
        self.watch.touch()
        text = f"{label_of(trial)}: " + (f"{params_text(params)}: " if params else "")
        how = end_of_part(record, self.setup.sweep.metric, state, self._lost.get(trial))
        if state == "there":
            self.display.rest(label_of(trial))
            self.display.say(text, how)
        else:
            self.display.ended(label_of(trial), text, how)

    def _decided(self, decision: RungDecision) -> None:
        self.save(rungs=(*self.record.rungs, decision))
        places = decision.trials
        on = [place.id for place in places if place.goes_on]
        for place in places[len(on) :]:
            self.display.ended(label_of(place.id))
        self.display.say(
            f"compared after epoch {places[0].epoch}: {len(on)} of {len(places)} trials go on ({', '.join(on)})"
        )

    def _check_weights(self, records: Iterable[RunRecord | None]) -> None:
        """Writes down which files of weights these runs started from. Raises ConfigError where they are not all the same."""
        there = (record for record in records if record is not None)
        self.save(weights_sha256=noted_hashes(self.setup.uri, self.record.weights_sha256 or {}, there))

    def _retrained(self) -> Iterator[RunRecord | None]:
        """Yields the records of the runs that were trained after the search."""
        record = self.record
        entries = (*(record.retrain or ()), *(record.balanced.runs if record.balanced else ()))
        places = [entry.run_dir for entry in entries]
        for row in record.ablation or ():
            places += [*row.run_dirs, *(setting.run_dir for setting in row.settings or ())]
        yield from (RunRecord.read(join(self.setup.uri, place)) for place in dict.fromkeys(places))

    def _collect(self) -> None:
        """Reads the outcome of every trial from its own directory, which also works after a restart."""
        setup, late = self.setup, self.watch.out_of_time.is_set()
        points, barred = self._points(), self._barred
        self._check_weights(read_records(setup.uri, [*points, "baseline"]).values())
        self.save(trials=collect(setup.uri, setup.sweep, points, self._lost, out_of_time=late, barred=barred))

    def choose(self) -> bool:
        """Writes the winner down. Returns False where time ran out before every trial was settled."""
        trials, sweep = self.record.trials or (), self.setup.sweep
        if num_settled(trials) < self.setup.num_trials and self.watch.out_of_time.is_set():
            self.display.say("time is up before every trial came to its end; the same command continues")
            return False
        winner = winner_of(trials, sweep.name, self.setup.num_trials, sweep.metric)
        if winner.id != self.record.winner:  # what was trained of another one says nothing of this one
            self.save(retrain=None, comparison=None, balanced=None, ablation=None)
        self.save(winner=winner.id, baseline="baseline")
        settings = ", ".join(f"{key}={short(value)}" for key, value in winner.params.items())
        self.display.say(f"winner on validation: trial {winner.id} ({100 * (winner.last or 0):.1f}%): {settings}")
        return True

    def _winner(self) -> TrialRecord:
        winner = self.record.trial(self.record.winner)
        assert winner is not None, "it was chosen among the trials"
        return winner

    def _tell_schedule(self) -> None:
        """Says that the winner of population-based training had a schedule of values.

        A retrain with one value would not repeat it.
        """
        self.display.say("the winner is a schedule, not one setting, so it is not retrained; it held")
        for part in self._winner().schedule or ():
            values = ", ".join(f"{key}={value}" for key, value in part.items() if key != "images_seen")
            self.display.say(f"  from image {part['images_seen']:,} on: {values}")

    # ---- retrain and test

    def retrain(self) -> None:
        """Trains winner and baseline again and tests them, then what else is asked for; each part is written at once."""
        sweep, found = self.setup.sweep, (trial for _, trial in ranked(self.record))
        trials = {t.id: t.params for t in found if t.status != "failed" and t.last is not None}
        retrains = Retrains(self.setup, self.runs, self.display, self._winner().params, trials)
        self.save(**retrains.pairs())
        if sweep.alt:
            self.save(**retrains.balanced())
        if sweep.ablation:
            self.save(**retrains.ablation())
