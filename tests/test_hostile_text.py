"""The same list of hostile texts, as names, reasons and values, through every place where text of others ends up."""

from __future__ import annotations

import ast
import csv
import dataclasses
import html
import io
import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from markdown_it import MarkdownIt

from ltcore.cli import console
from ltcore.cli import evaluate as assess
from ltcore.cli import predict as forecast
from ltcore.cli.args import EvaluateArgs
from ltcore.cli.entry import run_main, say
from ltcore.config.execution import PREDICTION_FORMATS
from ltcore.config.records import SweepRecord
from ltcore.data.datasets import inputs
from ltcore.data.images.decode import decode_canvas
from ltcore.data.shards import validate as check
from ltcore.data.shards.manifest import LabelTable, Manifest, Split
from ltcore.errors import DataError
from ltcore.reporting import figures, svg
from ltcore.reporting.records import read_run, read_sweep
from ltcore.reporting.report import write_report, write_runs_report
from ltcore.reporting.results_table import COLUMNS, results_table
from ltcore.reporting.terminal import Terminal
from ltcore.runtime.doctor import checks as doctor
from ltcore.runtime.doctor import doctor as doctor_nodes
from ltcore.runtime.progress import ProgressDisplay
from ltcore.storage import read_jsonl
from ltcore.text import markdown_cell, markdown_code, message, printable, printable_lines, storable
from ltcore.tracking.config import TrackingConfig
from ltcore.tracking.tracker import open_tracker
from ltcore.tuning.sweep import Sweep
from tests.conftest import png
from tests.paths import ROOT
from tests.records import run_record
from tests.reporting import fake_sweep
from tests.reporting.finished_run import write as write_finished_run
from tests.reporting.page import Page
from tests.tracking.events import read_events
from tests.tracking.wandb_file import read_offline_run

HOSTILE = [
    "[/x]",
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:20650",
    "/data/[a]/train.tar",
    "[link=https://evil.example]here[/link]",
    "[bold",
    ":skull:",
    "\x1b[2J\x1b[1;31mred",
    "\x1b]8;;https://evil.example\x07here",
    "a\roverwritten",
    "cat\t0.9999\nimg.png\tdog\t1.0000",
    "x\n  hash        deadbeef0000",
    "a | b \\| c",
    "`rm` ``-rf`` |",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "![x](https://evil.example/p.png) [y](javascript:alert)",
    "; touch x",
    "'; touch x; '$(touch x)",
    "caf\udce9",
    "\ud83d",
    "\u202egnp.exe",
    "a\x00b\x85c\u2028d",
]
each = pytest.mark.parametrize("text", HOSTILE, ids=ascii)


def harmless(shown: str) -> bool:
    """Whether a terminal draws it and nothing else."""
    return all(line.isprintable() for line in shown.split("\n"))


def wide() -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    return Terminal(file=file, width=1000), file


# ---- the functions


@each
def test_what_is_printable_is_one_line_and_says_it_all(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\n" not in shown
    if text.isprintable():
        assert shown == text
    elif "\\" not in text:
        assert ast.literal_eval(f"'''{shown}'''") == text


@each
def test_lines_keep_their_breaks_and_those_of_a_message_stay_below_it(text: str) -> None:
    assert printable_lines(text).count("\n") == text.count("\n")
    assert harmless(message(f"error: {text}"))
    assert all(line.startswith("  ") for line in message(f"error: {text}").split("\n")[1:])


@each
def test_what_is_stored_is_utf8(text: str) -> None:
    assert storable(text).encode() == text.encode("utf-8", "backslashreplace")


# ---- the terminal


def test_nothing_else_makes_a_console() -> None:
    """rich reads markup in every string unless it is told not to."""
    for folder in ("ltcore", "pipelines"):
        for file in (ROOT / folder).rglob("*.py"):
            calls = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
            assert file.name == "terminal.py" or "Console" not in calls, file
            tags = re.findall(
                r"\[/?(?:bold|dim|red|green|yellow)?\]", "".join(re.findall(r'"[^"\n]*"', file.read_text()))
            )
            assert set(tags) <= {"[]"}, f"{file}: {tags} would be printed as it stands"


@each
def test_board(text: str) -> None:
    terminal, file = wide()
    display = ProgressDisplay(terminal)
    display.say(f"results in {text}")
    display.say("sweep ", (text, "bold"), " of a recipe")
    display.ended("trial 1", "trial 1: ", (f"failed ({text})", "red"))
    assert all(line[0] == " " for line in file.getvalue().splitlines()), "none begins like the next output of ours"
    with display.stage(text, expected=1):
        display.update({text: {"images_seen": 1, "total_images": 2}})
        terminal.print(display._render())
    shown = file.getvalue()
    assert harmless(shown)
    for line in text.split("\n"):
        assert shown.count(printable(line)) >= 5


@each
def test_end_of_a_trial(text: str, tmp_path: Path) -> None:
    """What gloo says when a process dies ended every sweep in which one died."""
    terminal, file = wide()
    sweep = SimpleNamespace(
        watch=SimpleNamespace(touch=lambda: None),
        setup=SimpleNamespace(sweep=SimpleNamespace(metric="val/top1")),
        display=ProgressDisplay(terminal),
        _lost={"00001": text},
    )
    failed = run_record(status="failed", reason=f"RuntimeError: {text}")
    Sweep._part_ended(sweep, "00000", {"a.b": text}, "open", failed)  # type: ignore[arg-type]
    Sweep._part_ended(sweep, "00001", {"a.b": text}, "open", None)  # type: ignore[arg-type]
    assert "lost with its process (" in file.getvalue()
    assert harmless(file.getvalue())
    assert "failed (" in file.getvalue()
    assert printable(text.splitlines()[-1]) in file.getvalue()


@each
def test_doctor(text: str) -> None:
    terminal, file = wide()
    doctor_nodes.show([doctor.Check(text, text, text, doctor.RED, text)], terminal)
    assert harmless(file.getvalue())
    for line in text.split("\n"):
        assert file.getvalue().count(printable(line)) >= 3


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    folder = tmp_path_factory.mktemp("sweep")
    fake_sweep.make_sweep(folder, num_trials=3)
    return read_sweep(folder).record


@each
def test_stored_results(
    text: str, stored: SweepRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    trials = tuple(replace(t, id=text, params=dict.fromkeys(t.params, text)) for t in stored.trials or ())
    console.show_result(replace(stored, name=text, trials=trials, winner=text), text, age=True)
    metrics = dict.fromkeys(("top1", "macro_precision", "many", "medium", "few"), 0.5)
    console.show_run(run_record(name=text, precision=text, seconds=1.0, test={text: metrics}), text)
    shown = capsys.readouterr().out
    assert harmless(shown)
    for line in text.split("\n"):
        assert shown.count(printable(line)) >= 8


@each
def test_predictions_and_metrics(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"config": SimpleNamespace(data=None, name=text), "classes": (text,), "place": text, "data_hash": text}
    predictor = SimpleNamespace(**fields, posthoc_tau=0.0, tta="none", batch_size=8, image_size=8)
    predictor.canvas_shape, predictor.decode = (3, 8, 8), lambda data, where: decode_canvas(data, 8, where)
    predictor.logits = lambda images_BCHW: torch.zeros(len(images_BCHW), 1)
    monkeypatch.setattr(forecast, "load", lambda *_, **__: predictor)
    monkeypatch.setattr(inputs, "read_image", lambda _: png(np.random.default_rng(0)))
    args = EvaluateArgs(
        checkpoint="run",
        images=(text, "b.png"),
        data=None,
        splits=(),
        protocols=(),
        posthoc_tau=0.0,
        output=None,
        debug=False,
    )
    assert forecast.predict(args) == 0
    said = capsys.readouterr()
    rows = said.out.splitlines()
    assert [row.split("\t") for row in rows] == [[printable(f), printable(text), "1.0000"] for f in (text, "b.png")]
    assert harmless(said.err)
    for ending in PREDICTION_FORMATS:
        assert forecast.predict(dataclasses.replace(args, output=str(tmp_path / f"out{ending}"))) == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["file"] for row in rows] == [storable(text), "b.png"] and rows[0]["class"] == storable(text)
    assert pq.read_table(tmp_path / "out.parquet")["class"].to_pylist() == [storable(text)] * 2
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["file"] for row in csv.DictReader(stream)] == [storable(text), "b.png"]
    monkeypatch.setenv("COLUMNS", "1000")
    result = {
        "checkpoint": text,
        "data": {"name": text},
        "classes": [text, f"{text}2", "c"],
        "tta": "five_crop",
        "splits": {text: {text: 0.5}},
        "classes_present": {text: 2},
        "per_class": {text: [0.5, 1.0, None]},
        "support": {text: [2, 1, 0]},
        "confusion": {text: {"label": [0, 0, 1], "prediction": [0, 1, 1], "count": [1, 1, 1]}},
    }
    assess._print(result)
    assert harmless(capsys.readouterr().out)
    names = {"name": text, "data_hash": "0123456789", "posthoc_tau": 0, "tta": "none"}
    ((file, _),) = assess._files("run", {**result, **names})
    assert re.fullmatch(r"run/metrics/[A-Za-z0-9._-]+\.json", file)


@each
def test_checks_and_descriptions(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(check.Problem(text, text, text)).isprintable()
    manifest = Manifest(
        name=text,
        classes=(text, "b"),
        attributes=(text,),
        splits={"train": Split((), LabelTable(path="train-labels.npy", bytes=0, sha256="0" * 64))},
        class_counts={"train": (2, 1)},
        shot_groups=("few", "few"),
        shot_rule=text,
        image_size=8,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        seed=0,
        provenance={"source": text, text: 1},
    )
    monkeypatch.setattr(check, "read_manifest", lambda _: manifest)
    plain = dataclasses.replace(
        manifest, name="n", classes=("a", "b"), attributes=("c",), shot_rule="count", provenance={"source": 1, "d": 1}
    )
    shown = check.describe(text)
    monkeypatch.setattr(check, "read_manifest", lambda _: plain)
    assert harmless(shown)
    assert len(shown.splitlines()) == len(check.describe("uri").splitlines())


@each
def test_errors_and_progress(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (DataError(text), ValueError(text)):

        def main(error: Exception = error) -> int:
            raise error

        with pytest.raises(SystemExit):
            run_main(main)
        shown = capsys.readouterr().err.removesuffix("\n")
        assert harmless(shown)
        assert shown.startswith("error: ")
        assert all(line.startswith("  ") for line in shown.split("\n")[1:])
    say(text)
    assert harmless(capsys.readouterr().err)


# ---- files of a run


def test_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As classes, attributes (in the names of metrics), names and values of the configuration."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = open_tracker(
        run_dir=tmp_path / "run",
        run_id="hostile",
        group=HOSTILE[18],
        name="".join(HOSTILE),
        config_flat={"data.uri": "".join(HOSTILE), **{f"key {text}": text for text in HOSTILE}},
        options=TrackingConfig(wandb_mode="offline"),
    )
    metrics = {f"attribute/{text}": 0.5 for text in HOSTILE}
    tracker.log(metrics, 10)
    rows = [[text, "few", 0.5] for text in HOSTILE]
    tracker.table("test/per_class", ["class", HOSTILE[18], "accuracy"], rows)
    tracker.finish({f"last/{text}": text for text in HOSTILE}, "finished")

    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == [{**metrics, "step": 10}]
    assert json.loads((tmp_path / "run/tables/test.per_class.json").read_text())["rows"] == rows
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    logged = read_offline_run(path)
    assert logged.exit_code == 0
    assert {f"attribute/{storable(text)}" for text in HOSTILE} <= logged.history[0].keys()
    assert logged.config["data.uri"] == "".join(HOSTILE)
    (media,) = path.parent.glob("files/media/table/test/*.table.json")
    assert json.loads(media.read_text())["data"] == [[storable(text), "few", 0.5] for text in HOSTILE]
    assert len(table_rows(tensorboard_text(tmp_path / "run" / "tensorboard"))) == 1 + len(HOSTILE)


def tensorboard_text(folder: Path) -> str:
    values = (value for event in read_events(folder) for value in event.summary.value)
    found = [text.decode() for value in values for text in value.tensor.string_val]
    (text,) = found
    return text


def table_rows(markdown: str) -> list[int]:
    """The number of cells of each row, as a renderer sees them; nothing but text and code may be in them."""
    cells: list[int] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "tr_open":
            cells.append(0)
        cells[-1:] = [cells[-1] + (token.type in ("td_open", "th_open"))] if cells else []
        assert token.type not in ("html_block", "paragraph_open", "heading_open", "fence")
        inner = {child.type for child in token.children or ()}
        assert inner <= {"text", "code_inline", "text_special"}
    return cells


@each
def test_markdown(text: str, tmp_path: Path) -> None:
    assert table_rows(f"| a | b |\n| --- | --- |\n| {markdown_cell(text)} | {markdown_code(text)} |\n") == [2, 2]
    folder = write_finished_run(tmp_path / "run", 0.3, 0.3)
    info = json.loads((folder / "run.json").read_text())
    info["data"]["name"] = text
    info["config"]["augment.view1"] = text
    fake_sweep.write_json(folder / "run.json", info)
    table = results_table([read_run(folder)])
    assert table_rows(table) == [len(COLUMNS)] * 2
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    shown = [t for t in tokens if t.type == "inline"]
    assert printable(storable(text)) in "".join(c.content for c in shown[len(COLUMNS) + 1].children or ())
    (command,) = [c.content for t in shown for c in t.children or () if c.type == "code_inline"]
    if text.isprintable() and "|" not in text:
        assert f"augment.view1={text}" in shlex.split(command)


# ---- the report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_sweep, "CLASSES", HOSTILE[-10:])
        sweep = fake_sweep.make_sweep(folder, num_trials=3)
    all_of_it = "".join(HOSTILE)
    params = dict.fromkeys(fake_sweep.SPACE, all_of_it)
    for trial in sweep["trials"]:
        trial |= {"reason": all_of_it, "params": params if trial["id"] == sweep["winner"] else trial["params"]}
    changes = {
        "name": all_of_it,
        "recipe": all_of_it,
        "search": all_of_it,
        "stages": {all_of_it: 1.0},
        "space": dict.fromkeys(fake_sweep.SPACE, f"choice:{all_of_it}"),
        "config_hash": all_of_it,
    }
    fake_sweep.write_json(folder / "sweep.json", {**sweep, **changes})
    for file in folder.rglob("run.json"):
        info = json.loads(file.read_text())
        info |= {"reason": all_of_it, "precision": all_of_it, "versions": {all_of_it: all_of_it}}
        info["data"] |= {"name": all_of_it, "shot_groups": HOSTILE[:10]}
        info["hardware"] |= {"cpu": all_of_it, "gpus": [all_of_it]}
        info["config"] |= {"model.name": all_of_it, all_of_it: "x"}
        fake_sweep.write_json(file, info)
    (folder / all_of_it.translate({0: None, ord("/"): None})[:40]).mkdir()
    return Page(write_report(folder))


def test_the_report_runs_nothing_and_asks_nobody(page: Page) -> None:
    assert not {"script", "img", "iframe", "object", "embed", "link"} & set(page.tags)
    assert "onerror" not in {name for tag in page.attributes for name in tag}
    assert all(link.startswith("#") for link in page.links)
    assert "default-src 'none'" in page.html.split("<style>")[0]
    assert "caf\\udce9" in page.words


def test_commands_to_copy_are_one_command(page: Page) -> None:
    commands = page.html.split("<pre>")[1:]
    assert len(commands) >= 4
    words = [shlex.split(html.unescape(command.split("</pre>")[0])) for command in commands]
    assert all(line[0] == "python" and line[1].startswith("pipelines/") for line in words)
    (named,) = [line[line.index("--name") + 1] for line in words if "--name" in line]
    assert named.startswith(storable("".join(HOSTILE[:8])))
    (recipe,) = [line for line in words if "RECIPE" in line]
    assert len(recipe) == 3 + len(fake_sweep.SPACE)


@pytest.mark.parametrize("text", [t for t in HOSTILE if not set(t) & {"/", "\x00", "\ud83d"}], ids=ascii)
def test_a_run_directory_may_be_called_anything(text: str, tmp_path: Path) -> None:
    fake_sweep.write_run(tmp_path / text, kind="run", quality=0.5, epochs=2)
    fake_sweep.write_run(tmp_path / "other", kind="run", quality=0.5, epochs=2)
    page = Page(write_runs_report([tmp_path / text, tmp_path / "other"]))
    assert not {"script", "img"} & set(page.tags)


@pytest.mark.parametrize("where", ["/etc", "../other", "trials/../../other", "trials/.."])
@pytest.mark.parametrize("field", ["trials", "retrain", "baseline"])
def test_a_sweep_shows_no_directory_outside_it(where: str, field: str, tmp_path: Path) -> None:
    sweep = fake_sweep.make_sweep(tmp_path / "sweep", num_trials=3, seeds=1)
    if field == "baseline":
        sweep["baseline"] = f"../{where}"
    else:
        sweep[field][0]["run_dir"] = where
    fake_sweep.write_json(tmp_path / "sweep" / "sweep.json", sweep)
    with pytest.raises(DataError, match=r"sweep.json: run_dir .* lies outside the sweep"):
        write_report(tmp_path / "sweep")


def test_a_long_name_costs_no_more_than_its_length() -> None:
    """96,000 characters took 82 s: every beginning of a font was read to the end of the name."""
    name = "font: " * 8000
    began = time.process_time()
    assert "…" in figures.per_class([name, "b"], ["few", "few"], {"winner": [0.5, 0.5]}, "classes")
    with svg.style():
        figure, (axes,) = svg.new_figure(100, 100)
        figure.set_layout_engine("none")
        axes.text(0, 0, f'style="{name}')
        drawn = svg.to_svg(figure, "long")
    assert name in drawn
    assert 'style="font-size: 12px' in drawn
    assert time.process_time() - began < 6
