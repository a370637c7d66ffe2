"""What ``--fresh`` removes, and what a finished run answers for."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltcore import lease
from ltcore.cli.args import DEMO_RECIPE
from ltcore.cli.parsers import read_train, read_tune
from ltcore.cli.train import train
from ltcore.cli.tune import tune
from ltcore.config.records import RunRecord, now
from ltcore.config.sweep import read_sweep
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CheckpointError, ConfigError, DataError, LtcoreError
from ltcore.training import stored
from ltcore.training.run import delete_run
from ltcore.training.stored import finished_ago, remove
from ltcore.tuning.identity import identity
from tests.conftest import make_tiny
from tests.records import BEGAN, run_record, sweep_record
from tests.s3 import Bucket
from tests.training.runs import run, stage2_run, tiny_run

RECORD = json.dumps({"schema": 1, "status": "finished"})
SMALL = [
    "digits_glt_lpa_dro_ifl",
    "model.name=resnet8",
    "train.epochs=1",
    "train.batch_size=8",
    "train.threads=1",
    "tracking.wandb=false",
]
SMALL += ["tracking.tensorboard=false", "train.precision=fp32", "--engine", "inline"]
Put = Callable[[str, str], None]
pytest_plugins = ["tests.s3"]


def trained(*words: str) -> RunRecord:
    record = train(read_train(None, words))
    assert record is not None
    return record


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Put, Callable[[], set[str]]]:
    """(URI, write a file there, names of all files there)."""
    if request.param == "folder":
        root = tmp_path / "place"

        def put(name: str, text: str) -> None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

        return str(root), put, lambda: {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    bucket: Bucket = request.getfixturevalue("bucket")

    def put_object(name: str, text: str) -> None:
        bucket.put(f"place/{name}", text.encode())

    return f"{bucket.uri}/place", put_object, lambda: {n.removeprefix("place/") for n in bucket.names("place/")}


def test_only_what_belongs_to_the_run_is_removed(place: tuple[str, Put, Callable[[], set[str]]]) -> None:
    uri, put, names = place
    for name in ("run.json", "config.yaml", "metrics.jsonl", "checkpoints/last-00000001/model.pt", "wandb/x/y.wandb"):
        put(name, RECORD)
    put("thesis/chapter1.tex", "mine")
    put("notes.txt", "mine")
    said = remove(uri)
    assert said == f"--fresh: removed the earlier run in {uri}; notes.txt, thesis stays, which is not of it"
    assert names() == {"thesis/chapter1.tex", "notes.txt"}
    with pytest.raises(
        ConfigError, match=r"place holds neither run.json nor sweep.json of one, but notes.txt, thesis\."
    ):
        remove(uri)
    assert names() == {"thesis/chapter1.tex", "notes.txt"}


def test_a_record_larger_than_any_is_damaged_for_which_fresh_is_the_remedy(tmp_path: Path) -> None:
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(2**28)
    assert remove(str(tmp_path)) == f"--fresh: removed the earlier run in {tmp_path}"
    assert list(tmp_path.iterdir()) == []


def test_only_what_belongs_to_the_sweep_is_removed(place: tuple[str, Put, Callable[[], set[str]]]) -> None:
    uri, put, names = place
    ours = (
        "sweep.json",
        "report.html",
        "tune/tuner.pkl",
        "tune-2/x",
        "trials/00000/run.json",
        "trials/baseline/run.json",
    )
    runs = [f"{folder}/winner-seed1/checkpoints/best-00000001/model.pt" for folder in ("retrain", "alt", "ablation")]
    for name in (*ours, *runs, "shared_start/run.json"):
        put(name, RECORD)
    put("trials/00000/figure.svg", "mine")
    put("retrain/my-notes.txt", "mine")
    assert "removed the earlier sweep" in remove(uri)
    assert names() == {"trials/00000/figure.svg", "retrain/my-notes.txt"}


def test_a_removal_that_is_killed_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment the sweep is there while one of its trials is, and no run without weights has a record."""
    for name in ("sweep.json", "report.html", "trials/0/run.json", "trials/0/checkpoints/best-1", "trials/1/run.json"):
        (tmp_path / "place" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "place" / name).write_text(RECORD)
    removed: list[str] = []

    def watched(uri: str, fence: Callable[[], None]) -> None:
        removed.append(str(Path(uri).relative_to(tmp_path / "place")))
        remove_entry(uri, fence)

    remove_entry = stored._remove_entry
    monkeypatch.setattr(stored, "_remove_entry", watched)
    remove(str(tmp_path / "place"))
    assert removed[-1] == "sweep.json"
    assert removed.index("trials/0/run.json") < removed.index("trials/0/checkpoints")


@pytest.mark.parametrize("record", ["{}", "[]", json.dumps({"name": "a run of another program"})])
def test_a_record_of_another_program_is_not_ours(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model.bin").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds neither run\.json nor sweep\.json"):
        remove(str(tmp_path))
    assert (tmp_path / "model.bin").exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(RECORD)
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "home")
    remove(str(tmp_path / "run"))
    assert (tmp_path / "home" / "thesis.tex").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_nothing_and_the_rest_of_a_start_that_was_cut_off_are_removed_without_a_record(tmp_path: Path) -> None:
    assert remove(str(tmp_path / "none")) == ""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert "removed" in remove(str(tmp_path / "run"))


@pytest.mark.parametrize("record", ["run.json", "sweep.json"])
def test_fresh_removes_nothing_of_a_process_that_took_over_meanwhile(tmp_path: Path, record: str) -> None:
    """The command slept, as a laptop does, between taking the place and making room."""
    place = tmp_path / "place"
    with lease.exclusive(str(place)) as held:
        files = [place / record, place / "config.yaml", place / "trials" / "00000" / "run.json"]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"schema": 1, "status": "running"}')
        held._taken = True
        with pytest.raises(DataError, match="was taken over by another process"):
            delete_run(str(place))
        assert all(file.exists() for file in files)


def test_fresh_removes_nothing_before_all_else_is_known_to_be_good(tiny_shards: str, tmp_path: Path) -> None:
    command = [*SMALL, "--name", "x", "--storage", str(tmp_path)]
    assert trained(*command, "--data", tiny_shards).status == "finished"
    before = (tmp_path / "x" / "metrics.jsonl").read_bytes()
    larger = [word.replace("batch_size=8", "batch_size=64") for word in command]
    for wrong in (
        [*command, "--data", "/no/such"],
        [*command, "--data", tiny_shards, "train.optim.lr=-1"],
        [*command, "--data", tiny_shards, "data.train_split=train_cbl"],
        [*command, "--data", tiny_shards, "train.accumulate=3"],
        [*larger, "--data", tiny_shards],
    ):
        with pytest.raises(LtcoreError):
            train(read_train(None, [*wrong, "--fresh"]))
        assert (tmp_path / "x" / "metrics.jsonl").read_bytes() == before, wrong


def test_a_finished_run_answers_for_itself_alone(
    tiny_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, "--name", "x", "--storage", str(tmp_path), "--data", tiny_shards]
    first = train(read_train(None, command))
    capsys.readouterr()
    assert train(read_train(None, command)) == first
    said = capsys.readouterr().err
    assert re.search(r"x finished \d+ s ago; this is its stored result \(--fresh to repeat it\)", said)
    for change in ("seed=7", "train.optim.lr=0.01", "objective.base=focal", "objective.terms.dro=null"):
        with pytest.raises(
            CheckpointError, match=rf"x belongs to another configuration \({change.split('=')[0]}.* --name"
        ):
            train(read_train(None, [*command, change]))
    longer = [word.replace("train.epochs=1", "train.epochs=2") for word in command]
    with pytest.raises(CheckpointError, match=r"train.epochs: 1 there, 2 now"):
        train(read_train(None, longer))
    free = [*(w for w in command if w != "train.threads=1"), "train.threads=2", "data.loader=threads"]
    assert train(read_train(None, free)) == first  # what changes no result


def test_on_other_data_it_is_refused_and_on_the_same_data_elsewhere_it_is_not(tiny_shards: str, tmp_path: Path) -> None:
    command = [*SMALL, "--name", "x", "--storage", str(tmp_path)]
    first = trained(*command, "--data", tiny_shards)
    copy = shutil.copytree(tiny_shards, tmp_path / "copy")
    assert trained(*command, "--data", str(copy)).test == first.test
    make_tiny(str(tmp_path / "other"), seed=1)
    with pytest.raises(
        CheckpointError, match=r"x was trained on data .* now data.uri leads to .* another --name, or --fresh"
    ):
        train(read_train(None, [*command, "--data", str(tmp_path / "other")]))


def test_without_a_name_a_second_seed_simply_trains(tiny_shards: str, tmp_path: Path) -> None:
    command = [*SMALL, "--storage", str(tmp_path), "--data", tiny_shards]
    records = [trained(*command, "--seed", seed) for seed in ("1", "2")]
    assert [record.seed for record in records] == [1, 2]
    assert len(list(tmp_path.glob("*/run.json"))) == 2


def test_the_engines_refuse_a_finished_run_of_another_configuration_too(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"train.optim.lr: 0.05 there, 0.01 now"):
        run(tiny_run(train__epochs=1, train__optim__lr=0.01), tiny_shards, tmp_path / "run")


def test_stage_2_does_not_answer_for_a_stage_1_that_was_trained_anew(tiny_shards: str, tmp_path: Path) -> None:
    def first(seed: int) -> None:
        remove(str(tmp_path / "first"))
        run(tiny_run(train__epochs=1, seed=seed), tiny_shards, tmp_path / "first")

    def second() -> dict[str, Any]:
        return run(stage2_run(tmp_path / "first", "ncm"), tiny_shards, tmp_path / "second")

    first(1)
    done = second()
    assert second() == done
    first(2)
    with pytest.raises(
        CheckpointError, match=r"second started from another state of stage2.from_run=.*first: .* --fresh"
    ):
        second()


def test_how_long_ago_is_said_in_words() -> None:
    assert finished_ago(run_record(status="finished", finished_at=BEGAN)).endswith(" ago")
    assert finished_ago(sweep_record(status="finished", finished_at=now())) == "0 s ago"


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text(RECORD)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataError, match=r"run.json cannot be removed: .*Permission denied.*Check permissions"):
        remove(str(tmp_path))


def test_a_finished_sweep_answers_for_its_own_data_alone_and_without_ray(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("ltcore.cli.console.show_result", lambda sweep, uri, age: shown.append(uri))
    overrides = {"sweep.name": "s", "sweep.recipe": DEMO_RECIPE, "data.uri": tiny_shards}
    fields = {"status": "finished", "identity": identity(read_sweep("tune_lpa", overrides))}
    sweep_record(data_hash=read_manifest(tiny_shards).hash, **fields).write(tmp_path / "s")
    command = [DEMO_RECIPE, "--name", "s", "--storage", str(tmp_path)]
    tune(read_tune(None, [*command, "--data", tiny_shards]))
    copy = shutil.copytree(tiny_shards, tmp_path / "copy")
    tune(read_tune(None, [*command, "--data", str(copy)]))
    assert shown == [str(tmp_path / "s")] * 2
    make_tiny(str(tmp_path / "other"), seed=1)
    with pytest.raises(ConfigError, match=r"s holds a sweep on other data \(.* there, .* now\)\. .* --fresh"):
        tune(read_tune(None, [*command, "--data", str(tmp_path / "other")]))
    with pytest.raises(
        ConfigError, match=r"holds a sweep with another configuration \(train.epochs: 28 there, 6 now\)"
    ):
        tune(read_tune(None, [*command, "--data", tiny_shards, "train.epochs=6"]))


def test_a_sweep_that_another_process_began_meanwhile_answers_for_itself_too(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both began before there was a record; the second one waited until the first had gone."""
    overrides = {"sweep.name": "s", "sweep.recipe": DEMO_RECIPE, "data.uri": tiny_shards}
    fields = {"identity": identity(read_sweep("tune_lpa", overrides))}

    @contextlib.contextmanager
    def after_the_first(uri: str, _say: object) -> Iterator[None]:
        sweep_record(data_hash=read_manifest(tiny_shards).hash, **fields).write(tmp_path / "s")
        yield

    monkeypatch.setattr("ltcore.cli.tune.exclusive", after_the_first)
    monkeypatch.setattr("ltcore.runtime.cluster.connect", lambda debug: SimpleNamespace(describe=lambda: "a Ray"))
    monkeypatch.setattr("ltcore.runtime.cluster.disconnect", lambda: None)
    command = [
        DEMO_RECIPE,
        "--name",
        "s",
        "--storage",
        str(tmp_path),
        "--data",
        tiny_shards,
        "train.epochs=30",
        "tracking.wandb=false",
    ]
    with pytest.raises(
        ConfigError, match=r"holds a sweep with another configuration \(train.epochs: 28 there, 30 now\)"
    ):
        tune(read_tune(None, command))


def test_a_comparison_of_methods_fits_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from ltcore.cli.console import show_result
    from tests.reporting.comparison import comparison

    show_result(comparison(3), "/runs/x", age=False)
    out = capsys.readouterr().out
    assert "distinguishable" in out and "…" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
