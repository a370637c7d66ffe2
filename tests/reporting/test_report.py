"""The reports: their numbers are those of the run files, whatever state the runs are in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from ltcore.errors import DataError
from ltcore.reporting.report import make_report, write_report, write_runs_report
from tests.paths import ROOT
from tests.reporting.comparison import comparison
from tests.reporting.fake_sweep import METRIC, begun, make_sweep, write_json, write_run
from tests.reporting.page import Page


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "demo"
    make_sweep(folder)
    return folder


@pytest.fixture(scope="module")
def page(sweep_dir: Path) -> Page:
    path = write_report(sweep_dir)
    assert path == sweep_dir / "report.html"
    return Page(path)


def stored(folder: Path, name: str = "sweep.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_every_test_number_of_every_seed_is_there_exactly(sweep_dir: Path, page: Page) -> None:
    expected = {
        (Path(entry["run_dir"]).name, f"{split}/{metric}"): value
        for entry in stored(sweep_dir)["retrain"]
        for split, metrics in stored(sweep_dir / entry["run_dir"], "run.json")["test"].items()
        for metric, value in metrics.items()
    }
    found = {
        (d["run"], d["metric"]): float(d["value"]) if "value" in d else None
        for d in page.data
        if d.get("metric", "").startswith("test_") and "run" in d
    }
    assert found == expected
    assert len(expected) == 6 * 2 * (14 + 12)


def test_comparison_is_that_of_the_sweep(sweep_dir: Path, page: Page) -> None:
    for split, metrics in stored(sweep_dir)["comparison"].items():
        for metric, cell in metrics.items():
            if metric.endswith("/macro_precision"):
                continue
            key = f"{split}/{metric}"
            assert page.values(stat="difference", metric=key) == [cell["difference"]]
            for role in ("winner", "baseline"):
                assert page.values(role=role, stat="mean", metric=key) == [fmean(cell[role])]
    assert page.values(stat="mean", metric="test_cbl/worst_class") == []  # not defined there: a row of dashes


def test_trials_parameters_and_stages(sweep_dir: Path, page: Page) -> None:
    sweep = stored(sweep_dir)
    for trial in sweep["trials"]:
        assert page.values(run=trial["id"], metric=METRIC) == [trial["last"]]
        assert page.values(run=trial["id"], metric="epochs_done") == [trial["epochs_done"]]
    baseline = stored(sweep_dir / "trials" / "baseline", "run.json")
    assert page.values(run="baseline", metric=METRIC) == [baseline["last"][METRIC]]
    winner = next(t for t in sweep["trials"] if t["id"] == sweep["winner"])
    for key, value in winner["params"].items():
        assert page.values(run=winner["id"], metric=f"params/{key}") == [value]
    for name, seconds in sweep["stages"].items():
        assert page.values(stage=name) == [seconds]


def test_accuracy_per_class_is_the_mean_over_seeds(sweep_dir: Path, page: Page) -> None:
    tables = [stored(sweep_dir / f"retrain/winner-seed{s}", "run.json")["per_class"]["test_gbl"] for s in (1, 2, 3)]
    shown = [float(d["value"]) for d in page.data if d.get("role") == "winner" and "class" in d]
    assert shown == [fmean(column) for column in zip(*tables, strict=True)]


def test_it_says_the_verdict_first_and_what_was_done(page: Page) -> None:
    assert [d for d in page.data if "verdict" in d] == [{"verdict": "better"}]
    for text in (
        "In balanced accuracy the winner is ",
        " points better than the baseline in GLT and ",
        "GLT (tested with classes and attributes balanced): better than the baseline by",
        "on the validation split alone and only among the 5 of 8 that reached the end",
        "3 paired seeds",
        "8 trials",
        "5 finished, 2 stopped early, 1 failed",
        "bf16 (AVX512-BF16)",
        "node-hours: 0.061 head, 0.25 gpu",
        "python pipelines/train.py",
    ):
        assert text in page.words, text
    assert page.words.index("In balanced accuracy") < page.words.index("The winner: trial")


def test_it_says_once_why_there_are_no_pictures(page: Page) -> None:
    assert page.words.count("/shards/digits-glt/manifest.json does not exist") == 1


def test_it_stands_alone(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "url(http" not in page.html
    assert "@import" not in page.html
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_what_differs_from_the_baseline(page: Page) -> None:
    table = page.words.partition("Where winner and baseline differ")[2].partition("Whole configuration")[0].split()
    assert table[5:] == [
        *("objective.terms.lpa.weight", "0.0471392", "off"),
        *("objective.terms.dro.radius", "0.200836", "off"),
        *("objective.terms.ifl.num_envs", "2", "off"),
    ]


def test_text_from_files_is_escaped(page: Page) -> None:
    assert "<fast>" not in page.html
    assert "<lower>" not in page.html
    assert "NumericError: train/loss is nan at step 12: <lower> the rate" in page.words


def test_figures_are_text_that_names_what_it_shows(page: Page) -> None:
    assert page.tags.count("svg") == 4 + 3 + 2 * 2  # curves, differences, bars, classes; responses; ranks of two tests
    assert page.words.count("winner") > 3
    for text in ("many", "seven", "points against the baseline", "validation balanced accuracy", "epoch"):
        assert text in page.words


def test_the_same_files_give_the_same_bytes(sweep_dir: Path, page: Page) -> None:
    assert write_report(sweep_dir).read_text() == page.html


def change(folder: Path, **fields: Any) -> None:
    sweep = {**stored(folder), **fields}
    write_json(folder / "sweep.json", {key: value for key, value in sweep.items() if value is not ...})


def test_not_distinguishable_is_said_in_these_words(tmp_path: Path) -> None:
    make_sweep(tmp_path, num_trials=2, gain=0.001)
    page = Page(write_report(tmp_path))
    assert [d["verdict"] for d in page.data if "verdict" in d] == ["same"]
    assert "not distinguishable from the baseline" in page.words
    assert "at the same spread" in page.words


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    make_sweep(tmp_path, num_trials=1, seeds=1, gain=0.5)
    page = Page(write_report(tmp_path))
    assert [d["verdict"] for d in page.data if "verdict" in d] == ["same"]
    assert "an interval needs two or more" in page.words
    assert "1 trial" in page.words


def test_without_comparison(tmp_path: Path) -> None:
    make_sweep(tmp_path, num_trials=3)
    change(tmp_path, comparison=..., retrain=..., stages={})
    page = Page(write_report(tmp_path))
    assert "it was not compared with the baseline" in page.words
    assert "Winner against baseline" not in page.words


def test_no_trial_finished(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, num_trials=3)
    trials = [{**t, "status": "stopped"} for t in sweep["trials"]]
    change(
        tmp_path,
        trials=trials,
        winner=...,
        comparison=...,
        retrain=...,
        status="failed",
        reason="LtcoreError: no winner",
    )
    page = Page(write_report(tmp_path))
    assert "No trial has reached the end yet (3 trials: 3 stopped early)." in page.words
    assert "LtcoreError: no winner" in page.words


def test_while_the_search_runs_trials_are_found_on_disk(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, num_trials=4)
    write_run(tmp_path / "trials" / "t09", kind="trial", quality=0.5, epochs=3, status="running")
    change(
        tmp_path, **dict.fromkeys(("trials", "winner", "comparison", "retrain", "finished_at"), ...), status="running"
    )
    page = Page(write_report(tmp_path))
    assert "The search is not over: 5 trials" in page.words
    assert page.values(run="t09", metric="epochs_done") == [3]
    assert page.values(run="t00", metric=METRIC) == [sweep["trials"][0]["last"]]


def test_before_anything_has_run(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", begun())
    assert "No trial has reached the end yet (0 trials)." in Page(write_report(tmp_path)).words


def test_empty_groups_and_other_test_splits(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, num_trials=3)
    cells = {metric: cell for metric, cell in sweep["comparison"]["test_gbl"].items() if metric not in ("few", "many")}
    change(tmp_path, comparison={"test": cells})
    for entry in sweep["retrain"]:
        info = stored(tmp_path / entry["run_dir"], "run.json")
        info["test"] = {"test": info["test"]["test_gbl"] | {"few": None}}
        info["per_class"] = {}
        write_json(tmp_path / entry["run_dir"] / "run.json", info)
    page = Page(write_report(tmp_path))
    assert page.values(stat="mean", metric="test/few") == []
    assert page.values(run="winner-seed1", metric="test/few") == [None]
    assert "few-shot" in page.words
    assert "than the baseline in the test split" in page.words


def test_lists_terms_that_are_off_and_hundreds_of_classes(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, num_trials=3)
    options = ["adam<w>", None, True]
    trials = [{**t, "params": {"train.optim.name": options[i]}} for i, t in enumerate(sweep["trials"])]
    change(tmp_path, trials=trials, space={"train.optim.name": "choice:adam<w>,null,true"})
    for path in tmp_path.glob("retrain/*/run.json"):
        info = json.loads(path.read_text())
        names = [f"class ${c}$ <b>" for c in range(150)]
        info["data"] |= {"classes": names, "shot_groups": ["many"] * 150, "class_counts": [200] * 150}
        info["per_class"] = {"test_gbl": [None, *[0.5] * 149]}
        write_json(path, info)
    page = Page(write_report(tmp_path))
    assert {"adam<w>", "off", "yes"} <= set(page.words.split())
    assert "<b>" not in page.html
    assert len([d for d in page.data if "class" in d]) == 300


def test_runs_side_by_side(tmp_path: Path) -> None:
    names = ("ce", "bs")
    infos = {}
    for seed, name in enumerate(names):
        params = {"objective.base": name}
        infos[name] = write_run(tmp_path / name, kind="run", quality=0.5, seed=seed, params=params, tested=True)
    path = write_runs_report([tmp_path / name for name in names])
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert "2 runs: 2 finished." in page.words
    assert "Where the configurations differ" in page.words
    for name, info in infos.items():
        assert page.values(run=name, metric="last/val/balanced_accuracy") == [info["last"][METRIC]]
        assert page.values(run=name, metric="best/val/balanced_accuracy") == [info["best"][METRIC]]
        for split, metrics in info["test"].items():
            for metric, value in metrics.items():
                assert page.values(run=name, metric=f"{split}/{metric}") == [value]
    assert len(page.ids) == len(set(page.ids))


def test_an_unbalanced_test_is_said_beside_its_numbers(tmp_path: Path) -> None:
    info = write_run(tmp_path / "own", kind="run", quality=0.5, tested=True)
    info["test"]["test_cbl"] |= {"balanced_accuracy": 0.25, "top1": 0.75}
    info["support"] = {"test_cbl": [40, *[7] * 7, 2, 0], "test_gbl": [5] * 10}
    write_json(tmp_path / "own" / "run.json", info)
    page = Page(write_runs_report([tmp_path / "own"]))
    assert "CLT balanced accuracy 25.0%, CLT top-1 75.0%" in page.words
    assert "test_cbl is not balanced (largest/smallest class 40/2): top-1 follows the large classes" in page.words
    assert "test_cbl: 9 of 10 classes have images" in page.words
    assert (
        "GLT top-1 " in page.words and "GLT balanced" not in page.words and "test_gbl is not balanced" not in page.words
    )
    assert 'title="expected calibration error' not in page.html and 'title="mean recall of the classes' in page.html


def test_a_sweep_on_unbalanced_tests_says_so(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    for entry in sweep["retrain"]:
        path = tmp_path / entry["run_dir"] / "run.json"
        write_json(path, json.loads(path.read_text()) | {"support": {"test_cbl": [40, *[7] * 9]}})
    page = Page(write_report(tmp_path))
    said = "test_cbl is not balanced (largest/smallest class 40/7)"
    assert page.words.count(said) == 2, "where winner and baseline are compared, and where every seed is listed"


def test_one_run_many_runs_and_a_run_that_died_at_once(tmp_path: Path) -> None:
    folders = [tmp_path / f"run{n}" for n in range(8)]
    for n, folder in enumerate(folders):
        write_run(folder, kind="run", quality=0.5, epochs=n, status="running")
    (tmp_path / "run0" / "run.json").unlink()
    page = Page(make_report(folders, tmp_path / "all.html"))
    assert "8 runs: 1 without run.json, 7 running." in page.words
    assert make_report(folders[1:2]) == tmp_path / "run1" / "report.html"
    assert "Running after 1 of 20 epochs." in Page(tmp_path / "run1" / "report.html").words


def test_what_is_no_run_or_unreadable_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no sweep"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="is not a run directory"):
        make_report([tmp_path])
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DataError, match=r"sweep\.json is not JSON"):
        write_report(tmp_path)


@pytest.mark.slow
def test_the_script(sweep_dir: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "pipelines" / "report.py")]
    make_report([sweep_dir])
    page = tmp_path / "page.html"
    done = subprocess.run([*script, str(sweep_dir), "--output", str(page)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, str(page))
    assert page.read_text() == (sweep_dir / "report.html").read_text()
    done = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_stored_comparison_is_shown_without_torch(tmp_path: Path) -> None:
    comparison(3).write(tmp_path)
    code = (
        "import sys; from ltcore.cli.console import show_result; from ltcore.config.records import SweepRecord;"
        f"stored = SweepRecord.read({str(tmp_path)!r}); show_result(stored, {str(tmp_path)!r}, age=False);"
        "print({'torch', 'matplotlib', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Chosen on validation" in done.stdout and done.stdout.splitlines()[-1] == "set()"


def test_importing_the_report_is_light() -> None:
    code = (
        "import sys, ltcore.reporting.report, ltcore.tracking.tracker;"
        "print({'torch', 'matplotlib', 'jinja2', 'wandb', 'ray', 'scipy', 'tensorboardX'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
