"""Which runs belong together under CLT, ALT and GLT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, ConfigError
from ltcore.training.protocol_runs import (
    StoredRun,
    checked,
    counterpart_config,
    find_counterpart,
    mismatch,
    open_stored,
    origin_of,
    refuse_seen_split,
)
from tests.records import DATA, run_record


def keep(folder: Path, name: str, split: str = "train", **fields: Any) -> StoredRun:
    """Writes the record of a run; fields of the configuration have double underscores for dots."""
    own = {key: fields.pop(key) for key in ("status", "data") if key in fields}
    changes = {key.replace("__", "."): value for key, value in fields.items()}
    cfg = RunConfig(name=name).replace({"data.train_split": split, **changes})
    record = run_record(
        name=name, **{"status": "finished", **own}, seed=cfg.seed, config=cfg.to_flat(), epochs_planned=cfg.epochs
    )
    (folder / name).mkdir(parents=True)
    record.write(folder / name)
    return StoredRun(str(folder / name), record)


def test_the_counterpart_differs_in_the_training_split_alone(tmp_path: Path) -> None:
    run = keep(tmp_path, "a", train__epochs=7)
    keep(tmp_path, "other-epochs", "train_cbl", train__epochs=8)
    keep(tmp_path, "other-seed", "train_cbl", train__epochs=7, seed=5)
    keep(tmp_path, "same-split", train__epochs=7)
    keep(tmp_path, "other-data", "train_cbl", train__epochs=7, data=replace(DATA, hash="0" * 64))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    (tmp_path / "file").write_text("no folder")
    assert find_counterpart(run) is None
    found = keep(tmp_path, "z-by-another-name", "train_cbl", train__epochs=7, train__threads=3)
    assert find_counterpart(run) == found
    assert find_counterpart(found) == run, "the first by name"


def test_one_that_is_finished_comes_before_one_that_is_not(tmp_path: Path) -> None:
    run = keep(tmp_path, "a")
    begun = keep(tmp_path, "a-train_cbl", "train_cbl", status="stopped")
    assert find_counterpart(run) == begun
    done = keep(tmp_path, "z", "train_cbl")
    assert find_counterpart(run) == done


def test_its_configuration_is_the_runs_own(tmp_path: Path) -> None:
    run = keep(tmp_path, "a", train__epochs=7, seed=3)
    cfg = counterpart_config(run, run.counterpart_name)
    assert (cfg.name, cfg.data.train_split, cfg.seed, cfg.epochs) == ("a-train_cbl", "train_cbl", 3, 7)
    back = counterpart_config(StoredRun("x", replace(run.record, config=cfg.to_flat(), name=cfg.name)), "b")
    assert back.to_flat() == {**run.record.config, "name": "b"}


def test_runs_of_several_seeds_are_sorted_and_others_refused(tmp_path: Path) -> None:
    second, first = keep(tmp_path, "two", seed=2), keep(tmp_path, "one", seed=1)
    balanced = keep(tmp_path, "cbl", "train_cbl", seed=1)
    assert checked([balanced, second, first]) == [first, second, balanced]
    again = keep(tmp_path, "again", seed=1)
    with pytest.raises(ConfigError, match=r"one and .*again are both trained on split 'train' with seed 1\. Give one"):
        checked([first, again])
    longer = keep(tmp_path, "longer", train__epochs=7, seed=2)
    with pytest.raises(ConfigError, match=r"no runs of one configuration .*: train.epochs is \d+ and 7\. Give runs"):
        checked([first, longer])
    with pytest.raises(ConfigError, match="data 5eed5eed5eed and 000000000000"):
        checked([first, keep(tmp_path, "elsewhere", seed=2, data=replace(DATA, hash="0" * 64))])
    with pytest.raises(ConfigError, match=r"begun is not finished \(stopped after 0 of \d+ epochs\)"):
        checked([keep(tmp_path, "begun", status="stopped")])
    with pytest.raises(
        ConfigError, match=r"trained with data.train_split=half; the protocols are of .* train or train_cbl"
    ):
        checked([keep(tmp_path, "half", "half")])


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no run.json: --protocols compares whole runs"):
        open_stored(str(tmp_path))


def test_what_runs_start_from_has_to_be_counterparts_too(tmp_path: Path) -> None:
    start, balanced_start = keep(tmp_path, "s"), keep(tmp_path, "s-train_cbl", "train_cbl")
    longer_start = keep(tmp_path, "long", "train_cbl", train__epochs=7)

    def with_start(name: str, split: str, origin: StoredRun | str) -> RunRecord:
        uri = origin if isinstance(origin, str) else origin.uri
        return keep(tmp_path, name, split, train__init_from=uri, seed=9).record

    run = with_start("a", "train", start)
    assert mismatch(run, with_start("good", "train_cbl", balanced_start)) == ""
    assert mismatch(run, with_start("leak", "train_cbl", start)) == (
        "leak is trained on 'train_cbl', but its train.init_from on 'train', so it knows that split too"
    )
    found = mismatch(run, with_start("long-start", "train_cbl", longer_start))
    assert found.startswith("the runs of train.init_from differ: train.epochs is ") and found.endswith(" and 7")
    pretrained = keep(tmp_path, "pretrained", data=replace(DATA, hash="0" * 64))
    assert origin_of(with_start("b", "train", pretrained), "train.init_from") is None
    assert mismatch(with_start("c", "train", pretrained), with_start("d", "train_cbl", pretrained)) == ""
    assert "train.init_from is" in mismatch(run, with_start("e", "train_cbl", "/nowhere"))
    gone = str(tmp_path / "gone")
    found = mismatch(with_start("g", "train", gone), with_start("h", "train_cbl", gone))
    assert (
        found == f"train.init_from={gone} of both is not there any more, so nothing says which split it was trained on"
    )
    assert mismatch(with_start("i", "train", gone), with_start("j", "train", gone)) == "", "one and the same start"
    of_step = with_start("f", "train", f"{start.uri}/checkpoints/last-00000010")
    assert origin_of(of_step, "train.init_from") == start


def test_a_run_on_balanced_classes_is_refused_a_start_that_knows_the_long_tail(tmp_path: Path) -> None:
    def start_of(uri: str | None, split: str = "train_cbl") -> dict[str, Any]:
        return {"train.init_from": uri, "stage2.from_run": None, "data.train_split": split}

    long_tailed, balanced = keep(tmp_path, "lt"), keep(tmp_path, "cbl", "train_cbl")
    through = keep(tmp_path, "through", "train_cbl", train__init_from=long_tailed.uri)
    foreign = keep(tmp_path, "foreign", data=replace(DATA, hash="0" * 64))
    for uri in (None, balanced.uri, foreign.uri, str(tmp_path / "nowhere")):
        refuse_seen_split(start_of(uri), DATA.hash)
    refuse_seen_split(start_of(long_tailed.uri, "train"), DATA.hash)
    for uri in (long_tailed.uri, f"{long_tailed.uri}/checkpoints/last-00000010", through.uri):
        with pytest.raises(
            ConfigError,
            match=r"^train.init_from=.* leads to .*/lt, which was trained on split 'train' of the same data",
        ):
            refuse_seen_split(start_of(uri), DATA.hash)
    long_tailed.record.write(tmp_path / "lt")
    replace(through.record, config={**through.record.config, "train.init_from": through.uri}).write(
        tmp_path / "through"
    )
    refuse_seen_split(start_of(through.uri), DATA.hash)
