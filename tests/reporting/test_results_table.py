"""Run directories as a Markdown table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltcore.config.load import load_run
from ltcore.config.records import RunRecord, Stage1
from ltcore.errors import DataError
from ltcore.reporting.records import read_run
from ltcore.reporting.report import make_table
from ltcore.reporting.results_table import COLUMNS, results_table
from tests.records import DATA, run_record
from tests.reporting.finished_run import HERE, RECIPE, write


def after_test(config: dict[str, Any], data: str = "x") -> RunRecord:
    tests = {"test": dict.fromkeys(("balanced_accuracy", "many", "medium", "few"), 0.5)}
    return run_record(status="finished", epochs_done=1, config=config, test=tests, data=replace(DATA, name=data))


def change(folder: Path, **fields: Any) -> None:
    record = read_run(folder).record
    assert record is not None
    replace(record, **fields).write(folder)


STAGE1 = Stage1(run="/one", name="one", seed=1, checkpoint="best-00000001", epoch=1, step=1, fingerprint="f")


def cells(*folders: Path) -> list[dict[str, str]]:
    lines = results_table([read_run(folder) for folder in folders]).splitlines()
    assert lines[1] == "| --- " * len(COLUMNS) + "|"
    return [dict(zip(COLUMNS, line.strip("| ").split(" | "), strict=True)) for line in lines[2:]]


def test_seeds_share_a_line_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    one = write(tmp_path / "a", 0.30, 0.31, seed="1")
    two = write(tmp_path / "b", 0.32, 0.33, seed="2")
    (row,) = cells(one, two)
    assert row == {
        "method": RECIPE,
        "data": "images",
        "epochs": "30",
        "seeds": "1, 2",
        "last": "31.00 ± 1.41",
        "best on val": "32.00 ± 1.41",
        "many / medium / few": "51.0 / 31.0 / —",
        "published": "43.0",
        "time each": "1 h 3 min",
        "command": f"`train.py {RECIPE} --data images.zip train.epochs=30`",
    }


def test_a_seed_that_is_given_twice_is_no_second_sample(tmp_path: Path) -> None:
    one, copy = (write(tmp_path / name, 0.30, 0.31, seed="1") for name in ("a", "copy"))
    with pytest.raises(DataError, match="copy is seed 1 once more of a run that is given already"):
        cells(one, copy)


def test_one_seed_of_stage_2_after_two_of_stage_1_is_two_samples(tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2):
        options = {"stage2__method": "crt", "stage2__from_run": f"/ce-{seed}", "objective__base": "cross_entropy"}
        folders.append(write(tmp_path / f"crt-{seed}", 0.4, 0.4, seed="0", **options))
        change(folders[-1], stage1=replace(STAGE1, name=f"ce-{seed}", seed=seed))
    (row,) = cells(*folders)
    assert row["seeds"] == "0, 0"
    with pytest.raises(DataError, match="is seed 0 once more"):
        cells(*folders, folders[0])


def test_other_values_and_other_data_have_lines_of_their_own(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", 0.30, 0.31),
        write(tmp_path / "b", 0.25, 0.31, train__optim__lr="0.05", objective__terms__dro__radius="0.5"),
        write(tmp_path / "c", 0.20, 0.31, hash="b"),
    ]
    rows = cells(*folders)
    assert [row["last"] for row in rows] == ["30.00", "25.00", "20.00"]
    assert [row["published"] for row in rows] == ["43.0", "—", "43.0"], "that of another method is none"
    assert "train.optim.lr=0.05" in rows[1]["command"] and "objective.terms.dro.radius=0.5" in rows[1]["command"]
    assert load_run(RECIPE, dict(word.split("=") for word in rows[1]["command"].strip("`").split()[4:]))


def test_images_that_were_used_as_they_are_are_no_override_and_have_no_published_value(tmp_path: Path) -> None:
    """Of a recipe for CIFAR-100 the command would use the whole of it."""
    (row,) = cells(write(tmp_path / "a", 0.3, 0.3, data__imbalance_factor="null"))
    assert (row["published"], row["command"]) == ("—", f"`train.py {RECIPE} --data images.zip train.epochs=30`")
    (row,) = cells(write(tmp_path / "b", 0.3, 0.3, data__imbalance_factor="null", data__uri="cifar100"))
    assert row["command"] == f"`train.py {RECIPE} data.imbalance_factor=null train.epochs=30`"


def test_the_command_names_images_that_the_recipe_does_not_and_no_folder_around_them(tmp_path: Path) -> None:
    for n, (recipe, places, words) in enumerate(
        (
            ("places_lt_ce", {}, ""),
            ("places_lt_ce", {"data.uri": "/home/ann/places"}, " --data places"),
            ("places_lt_ce", {"data.uri": "s3://bucket/places"}, " --data s3://bucket/places"),
            ("mscoco_glt_ce", {"data.uri": "mscoco-glt", "data.images": "/home/ann/coco"}, " data.images=coco"),
        )
    ):
        folder = write(tmp_path / str(n), 0.3, 0.3)
        config = load_run(recipe, places).to_flat()
        change(folder, config={**config, "model.weights": "default"} if config["model.weights"] == "auto" else config)
        (row,) = cells(folder)
        assert row["command"].startswith(f"`train.py {recipe}{words}")
        assert "home" not in row["command"] and row["command"].count("data.") == words.count("data.")


@pytest.mark.parametrize("recipe", ["cifar100_lt_ce", "cifar100_lt_paco_lpa", "cifar100_lt_dro"])
def test_the_command_is_that_of_the_closest_recipe(tmp_path: Path, recipe: str) -> None:
    config = load_run(recipe, {"train.epochs": "7"}).to_flat()
    after_test(config).write(tmp_path)
    (row,) = cells(tmp_path)
    assert (row["method"], row["best on val"]) == (recipe, "—")
    assert row["command"] == f"`train.py {recipe} train.epochs=7`"


@pytest.mark.parametrize(
    ("recipe", "imbalance_factor", "published"),
    [
        ("cifar100_lt_ce", "100", "38.3"),
        ("cifar100_lt_ce", "50", "43.9"),
        ("cifar100_lt_ce", "10", "55.7"),
        ("cifar100_lt_ce", "20", "—"),
        ("cifar100_lt_balanced_softmax", "50", "46.6"),
        ("cifar100_lt_balanced_softmax", "10", "—"),
        ("cifar100_lt_logit_adjust", "100", "43.9"),
        ("cifar100_lt_dro", "100", "—"),
        ("cifar100_lt_paco_lpa", "10", "65.1"),
        ("imagenet_lt_paco", "null", "57.0"),
        ("imagenet_lt_dro", "null", "—"),
    ],
)
def test_the_published_value_is_that_of_the_imbalance_factor(
    tmp_path: Path, recipe: str, imbalance_factor: str, published: str
) -> None:
    config = load_run(recipe, {"data.imbalance_factor": imbalance_factor}).to_flat()
    after_test(config).write(tmp_path)
    (row,) = cells(tmp_path)
    assert (row["method"], row["published"]) == (recipe, published)


@pytest.mark.parametrize(("data", "published"), [("cifar100-if10-keyed", "55.7"), ("cifar100-if100-keyed", "38.3")])
def test_the_published_value_is_that_of_shards_that_were_made_already(
    tmp_path: Path, data: str, published: str
) -> None:
    """They have their own imbalance, and the key of the recipe has no effect on them."""
    after_test(load_run("cifar100_lt_ce").to_flat(), data).write(tmp_path)
    (row,) = cells(tmp_path)
    assert row["published"] == published


def test_unfinished_runs_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 0.3, 0.3, status="stopped")
    with pytest.raises(DataError, match=r"/a: stopped, not finished"):
        results_table([read_run(folder)])
    with pytest.raises(DataError, match=r"^No finished run among these: .*/a: stopped, not finished"):
        make_table([folder])


def test_the_table_leaves_out_what_is_no_finished_run_and_says_so(tmp_path: Path) -> None:
    """As where a shell puts in everything that lies there."""
    finished, stopped = write(tmp_path / "a", 0.3, 0.3), write(tmp_path / "b", 0.3, 0.3, status="stopped")
    untested = write(tmp_path / "c", 0.3, 0.3, tested=False)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    table, left_out = make_table([finished, stopped, untested, tmp_path / "sweep", tmp_path / "report.html"])
    assert table == results_table([read_run(finished)])
    assert left_out == [
        f"{stopped}: stopped, not finished",
        f"{untested}: not tested: a trial of a sweep",
        f"{tmp_path}/sweep: a sweep, whose report.html has its results",
        f"{tmp_path}/report.html: no run: without run.json",
    ]


def test_runs_of_stage_2_are_told_apart_by_their_stage_1_and_ordinary_ones_get_no_recipe_of_it(tmp_path: Path) -> None:
    crt = {"stage2__method": "crt", "objective__base": "cross_entropy", "data__imbalance_factor": "50"}
    folders = []
    for name, seed, epochs in (("ce-1", "1", "30"), ("ce-2", "2", "30"), ("long", "1", "60")):
        options = {"stage2__from_run": f"/{name}", "stage2__options__crt__epochs": "5", "train__epochs": epochs}
        folder = write(tmp_path / f"crt-{name}", 0.4, 0.4, seed=seed, **crt, **options)
        change(folder, stage1=replace(STAGE1, name=name))
        folders.append(folder)
    ordinary = write(tmp_path / "plain", 0.3, 0.3, objective__base="cross_entropy", data__imbalance_factor="null")
    two, long, plain = cells(*folders, ordinary)
    assert (two["method"], two["seeds"]) == ("cifar100_lt_crt", "1, 2")
    assert two["command"] == "`train.py cifar100_lt_crt stage2.from_run=ce-1 stage2.options.crt.epochs=5`"
    assert long["command"] == "`train.py cifar100_lt_crt stage2.from_run=long stage2.options.crt.epochs=5`"
    assert "stage2" not in plain["command"]


@pytest.mark.parametrize(
    ("stage1", "published"),
    [({}, "40.3"), ({"train__optim__weight_decay": "5e-3"}, "—"), ({"objective__terms__dro__radius": "0.5"}, "—")],
)
def test_the_published_value_of_stage_2_is_for_one_stage_1(
    tmp_path: Path, stage1: dict[str, str], published: str
) -> None:
    crt = {"stage2__method": "crt", "stage2__from_run": "/one", "objective__base": "cross_entropy"}
    folder = write(tmp_path / "crt", 0.4, 0.4, seed="1", **crt, **stage1)
    change(folder, stage1=STAGE1)
    (row,) = cells(folder)
    assert (row["method"], row["published"]) == ("cifar100_lt_crt", published)


def test_options_of_a_loss_that_is_not_chosen_say_nothing(tmp_path: Path) -> None:
    """As another version stored them, with other defaults."""
    folder = write(tmp_path / "a", 0.3, 0.3)
    other = {"objective.base_options.paco.sample_weight": 0.7, "objective.base_options.gone.option": 1}
    config = load_run(RECIPE, {**HERE, "name": "a", "train.epochs": "30"}).to_flat()
    change(folder, config=config | other)
    (row,) = cells(folder)
    assert (row["published"], row["command"]) == ("43.0", f"`train.py {RECIPE} --data images.zip train.epochs=30`")


def test_trained_parameters_have_a_column_where_runs_differ_in_them(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, 0.3, 0.3, seed=seed) for name, seed in (("a", "1"), ("b", "2"))]
    other = write(tmp_path / "c", 0.4, 0.4, **{"seed": "1", "train.epochs": "40"})
    runs = [read_run(folder) for folder in (*folders, other)]
    assert "trained parameters" not in results_table(runs), "no run says how many it trains"
    for folder, number in zip((*folders, other), (184_000, 184_000, 85_800_000), strict=True):
        change(folder, trained_parameters=number)
    head, line, *rows = results_table([read_run(folder) for folder in (*folders, other)]).splitlines()
    assert head.endswith("| published | trained parameters | time each | command |")
    assert line == "| --- " * (len(COLUMNS) + 1) + "|"
    assert [row.split(" | ")[-3] for row in rows] == ["184,000", "85,800,000"]
    change(other, trained_parameters=0)
    assert results_table([read_run(folder) for folder in (folders[0], other)]).splitlines()[3].split(" | ")[-3] == "0"
    change(other, trained_parameters=None)
    assert results_table([read_run(folder) for folder in (folders[0], other)]).splitlines()[3].split(" | ")[-3] == "—"
    assert "trained parameters" not in results_table([read_run(folder) for folder in folders])
