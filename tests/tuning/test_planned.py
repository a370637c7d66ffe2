"""What a sweep trains is checked before the first run: ALT and ablation too, and counted for a dry run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltcore.config.load import base_run
from ltcore.config.sweep import SweepConfig, read_sweep
from ltcore.data.shards.manifest import Manifest
from ltcore.data.shards.source import Sample
from ltcore.errors import CapacityError, ConfigError, DataError
from ltcore.training.protocol_runs import ORIGINS
from ltcore.tuning.planned import count_words, planned_runs
from tests.conftest import png
from tests.records import run_record
from tests.shards import write_dataset

BATCH = {"train.batch_size": "8", "model.ghost_batch": "4"}


def data(folder: Path, **counts: tuple[int, int]) -> Manifest:
    """Two classes with so many images in each split."""
    rng, both = np.random.default_rng(0), {"train": (9, 3), "val": (1, 1), "test_gbl": (1, 1), **counts}
    splits = {
        split: [Sample(f"{split}{c}{n}", png(rng), "png", c, 0) for c in (0, 1) for n in range(row[c])]
        for split, row in both.items()
    }
    return write_dataset(folder, classes=["ant", "bee"], attributes=["day"], splits=splits, image_size=16)


def search(**keys: Any) -> SweepConfig:
    return read_sweep("tune_lpa", {**BATCH, **{key.replace("__", "."): value for key, value in keys.items()}})


def variants(**keys: Any) -> SweepConfig:
    own = {"sweep.recipe": "folder_small", "train.batch_size": "8", "sweep.alt": "true"}
    return read_sweep("compare_methods", {**own, **{key.replace("__", "."): value for key, value in keys.items()}})


@pytest.mark.parametrize("sweep", [search(), variants()])
def test_runs_on_balanced_classes_are_checked_with_their_own_split(sweep: SweepConfig, tmp_path: Path) -> None:
    runs = planned_runs(sweep, base_run(sweep), data(tmp_path / "fits", train_cbl=(4, 4)))
    assert {run.data.train_split for run in runs if run.stage2 is None} == {"train", "train_cbl"}
    with pytest.raises(CapacityError, match=r"train.batch_size=8 exceeds the 6 training images of split train_cbl"):
        planned_runs(sweep, base_run(sweep), data(tmp_path / "few", train_cbl=(3, 3)))
    with pytest.raises(DataError, match=r"1 of 2 classes have no training sample in split train_cbl \(bee\)"):
        planned_runs(sweep, base_run(sweep), data(tmp_path / "empty", train_cbl=(9, 0)))


def test_a_comparison_under_alt_needs_the_split_and_a_search_does_without(tmp_path: Path) -> None:
    manifest = data(tmp_path)
    assert {run.data.train_split for run in planned_runs(search(), base_run(search()), manifest)} == {"train"}
    with pytest.raises(DataError, match="no split 'train_cbl'"):
        planned_runs(variants(), base_run(variants()), manifest)


def test_a_start_that_knows_the_long_tail_is_refused_under_alt(tmp_path: Path) -> None:
    manifest = data(tmp_path / "data", train_cbl=(4, 4))
    start = run_record(config={"data.train_split": "train", **dict.fromkeys(ORIGINS)})
    replace(start, data=replace(start.data, hash=manifest.hash)).write(tmp_path / "start")
    uri = str(tmp_path / "start")
    for sweep in (
        search(train__init_from=uri),
        variants(train__init_from=uri),
        variants(sweep__variants__ifl__train__init_from=uri),
    ):
        with pytest.raises(
            ConfigError, match=r"^sweep.alt=true trains on train_cbl too: train.init_from=.*/start leads"
        ):
            planned_runs(sweep, base_run(sweep), manifest)
    plain = search(train__init_from=uri, sweep__alt="false")
    assert planned_runs(plain, base_run(plain), manifest)


def test_every_part_of_a_sweep_is_counted(tmp_path: Path) -> None:
    manifest = data(tmp_path, train_cbl=(4, 4))

    def words(sweep: SweepConfig) -> str:
        return count_words(sweep, base_run(sweep), manifest, 2)

    own = {"sweep__retrain_seeds": "4", "sweep__num_trials": "8"}
    assert words(search(**own, sweep__ablation="true")) == (
        "The sweep has 61 runs (8 trials, 1 baseline, 8 retrains, 8 for ALT, 36 of the ablation, or fewer as the winner has "
        "terms and the trials settings of them), 2 at a time"
    )
    lpa_alone = {f"sweep__space__objective__terms__{key}": "null" for key in ("dro__radius", "ifl__num_envs")}
    assert "28 of the ablation" in words(search(**own, **lpa_alone, sweep__ablation="true"))
    one = {**own, "sweep__num_trials": "1", "sweep__ablation": "true"}
    assert "24 of the ablation" in words(search(**one)), "one trial leaves nothing to choose"
    others = {f"objective__terms__{term}": "null" for term in ("lpa", "dro")} | {
        f"sweep__space__objective__terms__{key}": "null" for key in ("lpa__weight", "dro__radius")
    }
    assert "12 of the ablation" in words(search(**{**own, **others}, sweep__ablation="true")), "the search has chosen"
    assert words(search(**own, sweep__alt="false")).startswith(
        "The sweep has 17 runs (8 trials, 1 baseline, 8 retrains)"
    )
    assert words(search(**{**own, "sweep__retrain_seeds": "0"})).startswith(
        "The sweep has 9 runs (8 trials, 1 baseline)"
    )
    assert words(variants()).startswith("The sweep has 66 runs (11 variants x 3 seeds x 2 training splits (ALT))")
