"""Records go to JSON and back; a damaged file is one sentence with its name, whichever command reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ltcore.cli.parsers import read_train, read_tune
from ltcore.cli.train import train
from ltcore.cli.tune import tune
from ltcore.config.json_record import JsonRecord, RecordFile, StoredRecord
from ltcore.config.records import (
    Place,
    RungDecision,
    RunRecord,
    SharedStart,
    Stage1,
    Stopped,
)
from ltcore.config.retrained import RetrainRecord
from ltcore.errors import ConfigError, DamagedFileError
from ltcore.evaluation.calibration import ReliabilityBin
from ltcore.evaluation.paired import paired_difference
from ltcore.reporting.report import make_report
from ltcore.runtime.placement import Scaling
from ltcore.training.record import RunInfo
from ltcore.training.run import Job
from ltcore.tuning.trainable import TrialPlan
from tests.records import HARDWARE, run_record, sweep_record, trial_record
from tests.reporting.fake_sweep import make_sweep

STOPPED = Stopped(epoch=4, value=None, rank=5, of=8, keep=3)
RUN = run_record(
    status="finished",
    config={"seed": 0, "name": "caf\udce9", "train.milestones": [0.8, 0.9]},
    best={"val/top1": 0.5, "epoch": 3, "val/few": None},
    bad_samples=0,
    test={"test": {"top1": 0.5, "few": None}},
    test_best={},
    per_class={"test": [0.5, None]},
    per_class_best={"test": [1.0, None]},
    support={"test": [3, 0]},
    calibration={"test": [ReliabilityBin(0), ReliabilityBin(3, 0.75, 0.5)]},
    calibration_best={},
    schedule=[{"images_seen": 0, "train.optim.lr": 0.1}],
    started_from={"checkpoint": "there", "epoch": 1},
    stage1=Stage1(run="/one", name="one", seed=1, checkpoint="best-1", epoch=1, step=5, fingerprint="f"),
    decision=STOPPED,
)
SWEEP = sweep_record(
    status="finished",
    space={"lr": "log:0.01,0.1"},
    identity={"sweep.num_trials": 8},
    stages={"search": 3.5},
    node_hours={"head": 0.5},
    suggested=({"00000": {"lr": 0.1}},),
    rungs=(
        RungDecision(
            cohort=0,
            fraction=0.25,
            keep=3,
            trials=(Place(id="00000", epoch=4, value=None, rank=1, goes_on=True),),
        ),
    ),
    forked={"00000": "shared_start"},
    shared_start=SharedStart(epochs=3, trials=2, saved_s=1.5),
    trials=(trial_record(params={"lr": 0.1}, last=0.5, schedule=[{"images_seen": 0}], decision=STOPPED),),
    winner="00000",
    baseline="baseline",
    retrain=(RetrainRecord(role="winner", seed=1, run_dir="retrain/winner-seed1"),),
    comparison={"test": {"top1": paired_difference([0.5, 0.6], [0.4, 0.3])}},
    hardware=replace(HARDWARE, cluster="1 node"),
)
JOB = Job(
    config={"name": "x"},
    data_uri="data",
    run_uri="runs/x",
    info=RunInfo(id="x", mutable=("train.optim.lr",), until=3),
    nonce="n",
)
PLAN = TrialPlan(
    config={"name": "x"},
    data_uri="data",
    sweep_uri="runs/s",
    id_prefix="s-abc",
    group="s",
    scaling=Scaling(workers=2, gpus_per_worker=0.5),
    engine="train",
    forked={"00000": "runs/s/shared_start"},
)


@pytest.mark.parametrize(
    "record", [RUN, SWEEP, JOB, PLAN, run_record(), sweep_record()], ids=lambda r: type(r).__name__
)
def test_a_record_goes_to_json_and_back(record: JsonRecord) -> None:
    travelled = json.loads(json.dumps(record.to_json()))
    assert type(record).from_json(travelled, "here") == record


def test_what_is_not_there_yet_is_left_out_and_an_undefined_value_is_null() -> None:
    plain = run_record().to_json()
    assert not {"test", "finished_at", "decision", "schedule"} & plain.keys()
    assert RUN.to_json()["decision"]["value"] is None
    assert plain["started_at"] == "2026-01-02T03:04:05+00:00"


def test_a_file_is_replaced_whole_and_without_a_folder_there_is_none(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, run_record())
    file.update(status="stopped", reason="asked to")
    assert RunRecord.read(tmp_path) == file.value == run_record(status="stopped", reason="asked to")
    alone = RecordFile(None, run_record())
    alone.update(epochs_done=1)
    assert alone.value.epochs_done == 1
    assert RunRecord.read(tmp_path / "nothing") is None


# ---- damage


MISSING = "missing"
Damage = tuple[tuple[str, ...], Any]
"""(names that lead to a field, the wrong value or MISSING)"""


def damages(kind: Any, value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[Damage]:
    """Every field of a record, also of the objects inside, without the field and with values of wrong types."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        name, inner = field.name, hints[field.name]
        place = (*path, name)
        if field.default is not None:
            yield place, MISSING
        yield place, 17 if "bool" in str(inner) else True
        if "tuple[str" not in str(inner):
            yield place, ["?"]
        if is_dataclass(inner):
            yield from damages(inner, value[name], place)


def cases(record: StoredRecord) -> list[Any]:
    found = damages(type(record), record.to_json())
    return [pytest.param(damage, id=f"{'.'.join(damage[0])}={damage[1]}") for damage in found]


def damaged(record: StoredRecord, damage: Damage, folder: Path) -> Path:
    value = inner = record.to_json()
    *path, name = damage[0]
    for word in path:
        inner = inner[word]
    if damage[1] == MISSING:
        del inner[name]
    else:
        inner[name] = damage[1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / record.FILE).write_text(json.dumps(value))
    return folder


def one_sentence(error: pytest.ExceptionInfo[DamagedFileError], file: Path, damage: Damage) -> None:
    place, wrong = damage
    text = str(error.value)
    assert text.startswith(f"{file}: {'.'.join(place)}") and "\n" not in text
    assert (" is missing. " in text) == (wrong == MISSING) and (", expected " in text) == (wrong != MISSING)
    assert text.endswith("It is damaged: restore it, or start again with --fresh.")


@pytest.mark.parametrize("damage", cases(RUN))
def test_damage_of_a_run_is_a_sentence(damage: Damage, tmp_path: Path) -> None:
    folder = damaged(RUN, damage, tmp_path / "run")
    with pytest.raises(DamagedFileError) as reported:
        make_report([folder])
    one_sentence(reported, folder / "run.json", damage)
    with pytest.raises(DamagedFileError) as trained:
        train(
            read_train(
                None, ["digits_glt_lpa_dro_ifl", "--name", "run", "--storage", str(tmp_path), "tracking.wandb=false"]
            )
        )
    one_sentence(trained, folder / "run.json", damage)


@pytest.mark.parametrize("damage", cases(SWEEP))
def test_damage_of_a_sweep_is_a_sentence(damage: Damage, tmp_path: Path) -> None:
    folder = damaged(SWEEP, damage, tmp_path / "sweep")
    with pytest.raises(DamagedFileError) as reported:
        make_report([folder])
    one_sentence(reported, folder / "sweep.json", damage)
    with pytest.raises(DamagedFileError) as tuned:
        tune(read_tune(None, ["--name", "sweep", "--storage", str(tmp_path)]))
    one_sentence(tuned, folder / "sweep.json", damage)


@pytest.mark.parametrize(
    ("record", "change", "words"),
    [
        (RUN, {"schema": 2}, "schema is 2, expected 1."),
        (RUN, {"status": "done"}, "status is 'done', expected running or finished or stopped or failed."),
        (RUN, {"started_at": "yesterday"}, "started_at is 'yesterday', expected a time such as"),
        (RUN, {"started_at": "2026-01-02"}, "started_at is '2026-01-02', expected a time with its offset from UTC."),
        (RUN, {"best": {"val/top1": "0.5"}}, "best.val/top1 is '0.5', expected a number."),
        (RUN, {"per_class": {"test": [0.5]}}, "per_class.test has 1 values for 2 classes."),
        (RUN, {"config": "x" * 99}, f"config is '{'x' * 59}..., expected an object."),
        (SWEEP, {"rungs": [{"cohort": 0}]}, "rungs[0].fraction is missing."),
        (SWEEP, {"trials": [{**SWEEP.to_json()["trials"][0], "params": {}}]}, "trials[0].params are not the keys of"),
        (RUN, {"support": {"test": [3]}}, "support.test has 1 values for 2 classes."),
        (
            RUN,
            {"calibration": {"test": [{"count": 1.5}]}},
            "calibration.test[0].count is 1.5, expected a whole number.",
        ),
        (SWEEP, {"comparison": {"test": {"top1": {}}}}, "comparison.test.top1.winner is missing."),
        (SWEEP, {"suggested": [[]]}, "suggested[0] is [], expected an object."),
    ],
)
def test_the_sentence_says_where_and_what(record: StoredRecord, change: Any, words: str) -> None:
    with pytest.raises(DamagedFileError) as error:
        type(record).from_json(record.to_json() | change, "/x")
    assert str(error.value).startswith(f"/x: {words}")


def test_what_a_finished_record_says_is_asked_for(tmp_path: Path) -> None:
    for record, name in ((RUN, "seconds"), (RUN, "finished_at"), (SWEEP, "finished_at"), (SWEEP, "trials")):
        left = {key: value for key, value in record.to_json().items() if key != name}
        with pytest.raises(DamagedFileError, match=rf"^here: {name} is missing\."):
            type(record).from_json(left, "here")


def test_the_records_inside_a_sweep_are_read_with_the_same_care(tmp_path: Path) -> None:
    make_sweep(tmp_path / "sweep", num_trials=2, seeds=1)
    for place in ("trials/t00", "trials/baseline", "retrain/winner-seed1"):
        copy = shutil.copytree(tmp_path / "sweep", tmp_path / place.replace("/", "-"))
        file = copy / place / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "epochs_planned": None}))
        with pytest.raises(DamagedFileError, match=rf"^{file}: epochs_planned is None, expected a whole number\."):
            make_report([copy])


def test_a_damaged_sweep_inside_its_mappings_is_another_sweep(tmp_path: Path) -> None:
    replace(SWEEP, identity={}).write(tmp_path / "sweep")
    with pytest.raises(ConfigError, match="holds a sweep with another configuration"):
        tune(read_tune(None, ["--name", "sweep", "--storage", str(tmp_path)]))


def test_what_is_stored_is_shown_without_torch() -> None:
    code = (
        "import sys, ltcore.config.records, ltcore.cli.console, ltcore.training.stored;"
        "print({'torch', 'ray', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
