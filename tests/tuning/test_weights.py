"""A sweep whose file of weights is replaced is another sweep: not continued, not answered, and in no table."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from ltcore.cli.parsers import read_tune
from ltcore.cli.tune import tune
from ltcore.config.json_record import RecordFile
from ltcore.config.load import base_run
from ltcore.config.records import RunRecord, SweepRecord
from ltcore.config.retrained import AblationRecord, RetrainRecord, SettingRecord
from ltcore.config.sweep import SweepConfig, read_sweep
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.models import timm_weights
from ltcore.training.checkpoint import read
from ltcore.training.same_start import origin_of
from ltcore.tuning.identity import identity
from ltcore.tuning.record import opened
from ltcore.tuning.sweep import Sweep
from ltcore.tuning.weights import check_same_weights, noted_hashes, starting_hashes
from tests.records import run_record, sweep_record
from tests.training.runs import run, tiny_run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"one")
    return path


def hash_of(content: bytes) -> str:
    return sha256(content).hexdigest()


def words_of(file: Path, **more: str) -> dict[str, str]:
    return {"sweep.recipe": "folder_small", "model.name": "resnet50", "model.weights": str(file), **more}


def sweep_of(file: Path, **more: str) -> SweepConfig:
    return read_sweep("compare_methods", {"sweep.name": "s", **words_of(file, **more)})


def setup_of(sweep: SweepConfig, uri: Path) -> Any:
    base = base_run(sweep)
    return SimpleNamespace(
        sweep=sweep,
        uri=str(uri),
        base=base,
        num_trials=sweep.size,
        seed=0,
        data_hash="",
        placement=SimpleNamespace(engine="trial"),
        gpu_share=None,
        cluster=SimpleNamespace(describe=lambda: "here"),
        weights_sha256=starting_hashes(sweep, base),
    )


def trained(folder: Path, content: bytes, file: Path) -> RunRecord:
    """Leaves behind what a run does that started from the file with this content."""
    record = run_record(
        status="finished",
        name=folder.name,
        config={"model.name": "resnet50", "model.weights": str(file)},
        started_from={"weights": str(file), "sha256": hash_of(content)},
    )
    record.write(folder)
    return record


def test_a_sweep_that_begins_writes_down_what_its_runs_start_from(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "b.pth"
    other.write_bytes(b"two")
    sweep = read_sweep("tune_lpa", {"model.name": "resnet50", "sweep.space.model.weights": f"choice:{file},{other}"})
    record = opened(setup_of(sweep, tmp_path), identity(sweep))
    assert record.weights_sha256 == {
        f"model.weights={file}": hash_of(b"one"),
        f"model.weights={other}": hash_of(b"two"),
    }
    record.write(tmp_path / "s")
    assert SweepRecord.read(tmp_path / "s") == record
    file.write_bytes(b"three")
    again = opened(setup_of(sweep, tmp_path / "s"), identity(sweep))
    assert again.weights_sha256 == record.weights_sha256, "what its runs started from stays"


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_with_another_file_it_is_neither_answered_nor_continued(
    status: str, file: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of configurations cannot see it: the name is the same."""

    def connect(**_: Any) -> None:
        raise RuntimeError("Ray starts")

    monkeypatch.setattr("ltcore.cli.console.show_result", lambda sweep, uri, age: None)
    monkeypatch.setattr("ltcore.runtime.cluster.connect", connect)
    words = [f"{key}={value}" for key, value in words_of(file).items() if key != "sweep.recipe"]
    command = ["folder_small", "--sweep", "compare_methods", "--name", "s", "--storage", str(tmp_path), *words]
    args = read_tune(None, [*command, "--data", tiny_shards, "tracking.wandb=false"])
    sweep = read_sweep("compare_methods", {**args.overrides, "sweep.recipe": "folder_small"})
    fields: dict[str, Any] = {"status": status, "search": "variants", "num_trials": sweep.size, "sizes": (sweep.size,)}
    record = sweep_record(data_hash=read_manifest(tiny_shards).hash, identity=identity(sweep), **fields)

    def again(known: dict[str, str] | None) -> None:
        SweepRecord.from_json({**record.to_json(), **({"weights_sha256": known} if known else {})}, "").write(
            tmp_path / "s"
        )
        if status == "finished":
            tune(args)
        else:
            with pytest.raises(RuntimeError, match="Ray starts"):
                tune(args)

    known = {f"model.weights={file}": hash_of(b"one")}
    again(known)
    file.write_bytes(b"another")
    again(None)  # of an older version, which did not note it
    with pytest.raises(
        ConfigError, match=r"s holds a sweep that started from model.weights=.*a.safetensors with .* --fresh"
    ):
        again(known)
    file.unlink()
    again(known)


def test_runs_that_started_from_different_files_come_into_no_table(tmp_path: Path, file: Path) -> None:
    """Also where the file was replaced while the sweep went on, whatever it is by now."""
    config = sweep_of(file, **{"sweep.seeds": "1"})
    setup = setup_of(config, tmp_path / "s")
    sweep = Sweep.__new__(Sweep)
    sweep.setup, sweep._lost, sweep._barred, sweep.watch = setup, {}, set(), Mock()
    sweep._points = lambda: {"ce-seed0": {}, "lpa-seed0": {}}  # type: ignore[method-assign]
    sweep.file = RecordFile(setup.uri, sweep_record(search="variants"))
    sweep.save = sweep.file.update  # type: ignore[method-assign]
    trials = tmp_path / "s" / "trials"
    trained(trials / "ce-seed0", b"one", file)
    sweep._collect()
    assert sweep.record.weights_sha256 == {f"model.weights={file}": hash_of(b"one")}
    assert [trial.id for trial in sweep.record.trials or ()] == ["ce-seed0"]
    trained(trials / "lpa-seed0", b"two", file)
    with pytest.raises(
        ConfigError, match=r"lpa-seed0 started from model.weights=.*, other runs of .*s from .* --fresh"
    ):
        sweep._collect()
    trained(trials / "lpa-seed0", b"one", file)
    trained(tmp_path / "s" / "retrain" / "winner-seed1", b"two", file)
    sweep.save(retrain=(RetrainRecord(role="winner", seed=1, run_dir="retrain/winner-seed1"),))
    with pytest.raises(ConfigError, match=r"winner-seed1 started from"):
        sweep._check_weights(sweep._retrained())
    place = "ablation/lpa-trial00000-seed0"
    trained(tmp_path / "s" / place, b"two", file)
    setting = SettingRecord(trial="00000", params={}, run_dir=place, value=0.5)
    row = AblationRecord(term="lpa", changes={}, seeds=(), run_dirs=(), over_baseline={}, settings=(setting,))
    sweep.save(retrain=None, ablation=(row,))
    with pytest.raises(ConfigError, match=r"lpa-trial00000-seed0 started from"):
        sweep._check_weights(sweep._retrained())


def test_published_weights_are_compared_where_they_are_at_hand_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(timm_weights.Published, "download", Mock(side_effect=AssertionError))
    own = {"model.name": "timm:test_vit", "model.weights": "default"}
    sweep = sweep_of(Path("default"), **own)
    place = timm_weights.published("timm:test_vit", "default")
    assert place is not None and starting_hashes(sweep, base_run(sweep)) == {}
    place.place.parent.mkdir(parents=True)
    place.place.write_bytes(b"put there")
    found = starting_hashes(sweep, base_run(sweep))
    assert found == {"model.weights=default of timm:test_vit": hash_of(b"put there")}


def test_a_checkpoint_that_was_trained_anew_is_another_one(tmp_path: Path, tiny_shards: str) -> None:
    source = tmp_path / "source"
    run(tiny_run(train__epochs=1), tiny_shards, source)
    start = f"train.init_from={source}"
    sweep = read_sweep("tune_lpa", {"sweep.recipe": "folder_small", "train.init_from": str(source)})
    stored = sweep_record(weights_sha256=starting_hashes(sweep, base_run(sweep)))
    assert stored.weights_sha256 == {start: origin_of(read(source))["fingerprint"]}
    check_same_weights(stored, sweep, base_run(sweep), "s")
    shutil.move(source, tmp_path / "gone")
    check_same_weights(stored, sweep, base_run(sweep), "s")
    run(tiny_run(train__epochs=1, seed=7), tiny_shards, source)
    with pytest.raises(ConfigError, match=rf"s holds a sweep that started from {start} with hash .* --fresh"):
        check_same_weights(stored, sweep, base_run(sweep), "s")


def test_trials_that_started_from_two_states_of_a_run_come_into_no_table(tmp_path: Path) -> None:
    def trial(fingerprint: str) -> RunRecord:
        return run_record(
            config={"train.init_from": "/stage1"}, started_from={"checkpoint": "/stage1", "fingerprint": fingerprint}
        )

    known = noted_hashes("s", {}, [trial("0123456789abcdef")] * 2)
    assert known == {"train.init_from=/stage1": "0123456789abcdef"}
    with pytest.raises(
        ConfigError, match=r"started from train.init_from=/stage1 with hash fedcba987654, other runs of s"
    ):
        noted_hashes("s", known, [trial("fedcba9876543210")])


def test_parents_of_its_own_may_be_trained_anew_with_their_children() -> None:
    start = "s3://bucket/s/trials/ce-seed0"

    def child(fingerprint: str) -> RunRecord:
        return run_record(
            config={"train.init_from": start}, started_from={"checkpoint": start, "fingerprint": fingerprint}
        )

    known = noted_hashes("s3://bucket/s", {}, [child("0123456789abcdef")])
    assert noted_hashes("s3://bucket/s", known, [child("fedcba9876543210")]) == {}
    with pytest.raises(ConfigError, match=r"other runs of s3://bucket/s"):
        noted_hashes("s3://bucket/s", {}, [child("0123456789abcdef"), child("fedcba9876543210")])
