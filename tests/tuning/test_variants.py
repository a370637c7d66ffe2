"""A comparison of methods: all of them trained with the same seeds, one chosen on validation, then all tested, in one table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli import parsers as cli
from ltcore.cli import tune as command
from ltcore.config.records import SweepRecord
from ltcore.errors import ConfigError
from ltcore.reporting.report import variants_lines, variants_table

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

SECOND = ("crt", "dro_ncm", "dro_crt")
METHODS = ("ce", "balanced_softmax", "logit_adjust", "ldam_drw", "lpa", "lpa_no_neighbors", "dro", "ifl", *SECOND)
WORDS = ("train.epochs=2", "train.batch_size=8", "train.threads=1", "model.name=resnet8", "tracking.wandb=false")
SMALL = ("objective.terms.lpa.num_attributes=4", "objective.terms.lpa.queue_size=16", "objective.terms.lpa.neighbors=2")


def compare(uri: str, storage: Path, *words: str) -> dict[str, Any]:
    lpa = [f"sweep.variants.{name}.{word}" for name in ("lpa", "lpa_no_neighbors") for word in SMALL]
    args = [
        "--sweep",
        "compare_methods",
        "--data",
        uri,
        "--storage",
        str(storage),
        "--name",
        "small",
        *WORDS,
        *lpa,
        *words,
    ]
    record = command.tune(cli.read_tune("test", args))
    assert record is not None
    return record.to_json()


def records(storage: Path) -> dict[str, dict[str, Any]]:
    return {f.parent.name: json.loads(f.read_text()) for f in (storage / "small" / "trials").glob("*/run.json")}


@pytest.fixture(scope="module")
def finished(color_shards: str, one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    storage = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCORE_CACHE", str(storage / "cache"))
        return storage, compare(color_shards, storage, "sweep.seeds=1")


def test_every_method_is_trained_to_its_end_with_the_recipe_of_small_images(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    storage, result = finished
    assert (result["recipe"], result["status"]) == ("folder_small", "finished")
    found = records(storage)
    assert set(found) == {f"{method}-seed0" for method in METHODS}
    assert all((run["status"], run["seed"]) == ("finished", 0) for run in found.values())
    assert all(run["epochs_done"] == 2 for name, run in found.items() if name.removesuffix("-seed0") not in SECOND)
    bases = {name.removesuffix("-seed0"): run["config"]["objective.base"] for name, run in found.items()}
    assert bases["lpa"] == bases["balanced_softmax"] == "balanced_softmax"
    assert bases["crt"] == bases["ce"] == "cross_entropy"
    assert found["crt-seed0"]["stage1"]["name"] == "trial-ce-seed0"
    assert {found[f"{name}-seed0"]["stage1"]["name"] for name in ("dro_ncm", "dro_crt")} == {"trial-dro-seed0"}


def test_the_choice_is_the_best_on_validation_and_was_written_before_the_tests(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    storage, result = finished
    found = records(storage)
    last = {name.removesuffix("-seed0"): run["last"]["val/balanced_accuracy"] for name, run in found.items()}
    assert last[result["winner"]] == max(last.values())
    ranked = [last[variant["name"]] for variant in result["variants"]]
    assert ranked == sorted(ranked, reverse=True)
    assert list(result["stages"])[-3:] == ["train", "test", "report"]
    for variant in result["variants"]:
        run = found[variant["trials"][0]]
        assert set(run["test"]) == {"test_cbl", "test_gbl"}
        assert variant["test"]["test_cbl"]["top1"] == [run["test"]["test_cbl"]["top1"]]
        assert ("difference" not in variant) == (variant["name"] == result["winner"])


def test_the_table_says_all_of_it(finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    _, result = finished
    sweep = SweepRecord.from_json(result, "sweep.json")
    rows = variants_table(sweep)
    assert list(rows[0]) == [
        "method",
        "val balanced accuracy",
        "val shots",
        "GLT",
        "CLT",
        "GLT shots",
        "time",
        "verdict",
    ]
    assert {row["method"] for row in rows} == set(METHODS)
    assert [row["verdict"] for row in rows] == ["chosen", *["one seed"] * 10]
    assert rows[0]["val balanced accuracy"] == f"{100 * result['variants'][0]['val']['val/balanced_accuracy'][0]:.1f}"
    lines = " ".join(variants_lines(sweep))
    assert f"Chosen on validation: {result['winner']}" in lines
    assert "1 seed cannot tell methods apart: sweep.seeds=3 with the same command adds the others" in lines


def test_the_page_has_the_numbers(finished: tuple[Path, dict[str, Any]]) -> None:
    storage, result = finished
    page = (storage / "small" / "report.html").read_text()
    for variant in result["variants"]:
        value = variant["test"]["test_cbl"]["top1"][0]
        cell = rf'<td data-run="{variant["name"]}" data-metric="test_cbl/top1" data-value="{value}">{100 * value:.1f}%</td>'
        assert re.search(cell, page), variant["name"]
    assert "Chosen on validation" in page


def test_the_same_command_shows_it_and_more_seeds_are_added(
    finished: tuple[Path, dict[str, Any]], color_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, result = finished
    before = {name: run["finished_at"] for name, run in records(storage).items()}
    assert compare(color_shards, storage, "sweep.seeds=1") == result
    assert "this is its stored result" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"sweep.variants.dro.objective.terms.dro.weight: '0.5' there, '0.25' now"):
        compare(color_shards, storage, "sweep.variants.dro.objective.terms.dro.weight=0.25")
    (storage / "small" / "trials" / "crt-seed0" / "run.json").unlink()  # as if it had been interrupted there
    more = compare(color_shards, storage, "sweep.seeds=2")
    found = records(storage)
    assert len(found) == 22 and all(run["test"] for run in found.values())
    kept = [name for name in before if name != "crt-seed0"]
    assert {name: found[name]["finished_at"] for name in kept} == {name: before[name] for name in kept}
    chosen, *others = more["variants"]
    assert all(len(variant["test"]["test_cbl"]["top1"]) == 2 for variant in more["variants"])
    cell = others[0]["difference"]["test_cbl"]["top1"]
    assert cell["winner"] == chosen["test"]["test_cbl"]["top1"] and cell["low"] <= cell["difference"] <= cell["high"]
    verdicts = {row["verdict"] for row in variants_table(SweepRecord.from_json(more, "sweep.json"))}
    assert verdicts <= {"chosen", "not distinguishable", "worse", "better"}
