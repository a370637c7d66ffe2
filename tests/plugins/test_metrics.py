"""Metrics of plugins: named, computed, logged, chosen by, and kept apart from ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore import dist
from ltcore.cli import main
from ltcore.cli.complete import candidates
from ltcore.config import keys
from ltcore.config.load import base_run, load_run
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.contracts.check import check_plugin
from ltcore.errors import ConfigError, PluginError
from ltcore.evaluation.catalog import goodness, limits, minimized
from ltcore.evaluation.confusion import Confusion
from ltcore.evaluation.pairs import Pairs
from ltcore.evaluation.plugged import PLUGGED, Metric, Scores, metrics_of
from ltcore.plugins import loading
from ltcore.training import predict
from tests.ddp import run_ranks
from tests.plugins.state import forgotten_after
from tests.training.runs import run, stage2_run, tiny_run

KEY = {"train.select": "val/neg_log_loss"}


def test_they_are_listed_and_completed_without_an_import(installed: Path) -> None:
    assert {("metric", "neg_log_loss"), ("metric", "kappa")} <= {(row.kind, row.name) for row in keys.methods()}
    assert candidates(["train", "train.select=val/k"], []) == ["train.select=val/kappa"]
    assert candidates(["tune", "sweep.metric=val/n"], [])[-1] == "sweep.metric=val/neg_log_loss"
    assert not [name for name in sys.modules if name.startswith("example_parts")]


def test_one_that_chooses_is_pinned_and_others_leave_no_trace(installed: Path) -> None:
    cfg = RunConfig(name="x").replace(KEY)
    assert cfg.plugins == ("example_parts.scores==0.3",)
    assert RunConfig.from_flat(cfg.to_flat()) == cfg == RunConfig.from_dict(cfg.to_dict())
    assert list(metrics_of(cfg.plugins, cfg.metrics)) == ["neg_log_loss", "kappa"] and metrics_of((), cfg.metrics) == {}
    assert "plugins" not in RunConfig(name="x").to_dict()
    with pytest.raises(ConfigError, match=r"train.select must be one of .*val/kappa.*, got 'val/kapa'"):
        cfg.replace({"train.select": "val/kapa"})


def test_a_run_logs_them_keeps_its_best_by_one_and_is_evaluated_by_them(
    beside: Path, tiny_shards: str, tmp_path: Path
) -> None:
    plain = run(tiny_run(), tiny_shards, tmp_path / "plain", test=True)
    cfg = tiny_run().replace({**KEY, "plugins": "example_parts.scores"})
    done = run(cfg, tiny_shards, tmp_path / "run", test=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [row["val/neg_log_loss"] for row in rows]
    assert done["best"]["val/neg_log_loss"] == max(values) < 0 and all(-1 <= row["val/kappa"] <= 1 for row in rows)
    assert {"neg_log_loss", "kappa"} <= done["test"]["test"].keys()
    ours = {key: value for key, value in done["last"].items() if key in plain["last"] and not key.endswith("_s")}
    assert {key for key in ours if key.startswith(("val/", "train/")) and ours[key] != plain["last"][key]} == set()
    loading.use(["example_parts.scores"], given=True)  # for a run that did not know them
    again, first = (
        predict.evaluate(predict.load(str(tmp_path / name)), tiny_shards, ["test"], [])["splits"]["test"]
        for name in ("run", "plain")
    )
    assert again["neg_log_loss"] == pytest.approx(done["test_best"]["test"]["neg_log_loss"], abs=1e-5)
    assert first["kappa"] is not None and first.keys() == again.keys() == done["test"]["test"].keys()


def test_a_report_shows_them_without_the_plugin(beside: Path, tiny_shards: str, tmp_path: Path) -> None:
    with forgotten_after():
        cfg = tiny_run().replace({"train.epochs": 1, "plugins": "example_parts.scores"})
        run(cfg, tiny_shards, tmp_path / "run", test=True)
    sys.path.remove(str(beside))
    main.report(argv=[str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "kappa" in page and "neg_log_loss" in page and not PLUGGED


def test_stage_2_is_chosen_by_one(installed: Path, tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "first")
    done = run(stage2_run(tmp_path / "first", "tau_norm", train__select="val/kappa"), tiny_shards, tmp_path / "second")
    assert done["config"]["plugins"] == "example_parts.scores==0.3" and -1 <= done["best"]["val/kappa"] <= 1


def test_a_sweep_is_ranked_by_one(beside: Path, tmp_path: Path) -> None:
    recipe, sweep = tmp_path / "mine.yaml", tmp_path / "vary.yaml"
    recipe.write_text("base: cifar100_lt_ce\nplugins: [example_parts.scores]\n")
    sweep.write_text(f"recipe: {recipe}\nmetric: val/kappa\nspace:\n  train.optim.lr: log:0.1,1\n")
    read = read_sweep(str(sweep))
    assert read.metric == "val/kappa" and base_run(read).plugins[0].startswith("example_parts.scores==")


def test_a_sweep_brings_the_plugin_of_its_metric(installed: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "vary.yaml"
    sweep.write_text("recipe: cifar100_lt_ce\nmetric: val/kappa\nspace:\n  train.optim.lr: log:0.1,1\n")
    assert base_run(read_sweep(str(sweep))).plugins == ("example_parts.scores==0.3",)


FAILS_LATE = """
from ltcore import Metric, plugins
@plugins.metric("late", summary="fails where there are more samples than in validation")
class Late(Metric):
    def value(self, counted):
        samples = int(counted.samples_C.sum())
        return samples / (samples <= 12)
"""


def test_one_that_fails_in_the_last_test_is_named_and_what_was_trained_is_evaluated(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "late_metric.py", tmp_path / "run"
    monkeypatch.syspath_prepend(str(tmp_path))
    source.write_text(FAILS_LATE)
    said = r"metric 'late' of plugin late_metric failed in value \(ZeroDivisionError: .*\). Repair it; .* --plugin late_metric"
    with forgotten_after(), pytest.raises(PluginError, match=said):
        run(tiny_run().replace({"train.epochs": 1, "plugins": "late_metric"}), tiny_shards, out, test=True)
    source.write_text(
        FAILS_LATE.replace("samples / (samples <= 12)", "samples")
    )  # another size: Python compiles it anew
    loading.use(["late_metric"], given=True)
    found = predict.evaluate(predict.load(str(out)), tiny_shards, ["test"], [])["splits"]["test"]
    assert found["late"] == 14


def test_reports_rank_by_one_without_its_plugin() -> None:
    assert goodness("val/neg_log_loss", -2.0) < goodness("val/neg_log_loss", -1.0)
    assert not minimized("val/kappa") and limits("val/kappa")[0] < -1 and limits("val/ncm_top1") == (0, 1)


class Distance(Metric):
    """Another score for every test."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def score(self, logits_BC, labels_B):
        return self.factor * logits_BC[:, 0]

    def value(self, counted):
        return counted.scores_C.sum()


def values(scores: Scores) -> dict[str, float | None]:
    return scores.values(Confusion(Pairs.every(2, 0)), ["many"] * 2)


def test_scores_are_summed_exactly_and_one_that_is_none_gives_no_value() -> None:
    logits_BC, labels_B = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0]]), torch.tensor([0, 1, 0])
    found = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        scores = Scores({"a": Distance(1.0), "b": Distance(1e9)}, 2)
        for row in order:
            scores.update(logits_BC[row : row + 1], labels_B[row : row + 1])
        found.append(values(scores))
    assert found[0] == found[1] == found[2]
    assert found[0]["a"] == pytest.approx(0.6, abs=1e-6) and found[0]["b"] is None
    with pytest.raises(PluginError, match=r"metric 'a' is inf, expected a finite number"):
        wrong = Scores({"a": type("Wrong", (Metric,), {"value": lambda *_: float("inf")})()}, 2)
        values(wrong)
    with pytest.raises(PluginError, match=r"metric 'a' gives scores of shape \(2,\) for 3 samples"):
        Scores({"a": type("Short", (Metric,), {"score": lambda _, x, y: x[0]})()}, 2).update(logits_BC, labels_B)


def summed(parts: int) -> Any:
    """The value of scores of 40 samples, of which each of ``parts`` ranks sees its own; equal on all."""
    logits_NC, labels_N = torch.randn(40, 2, generator=torch.Generator().manual_seed(3)), torch.arange(40) % 2
    mine_n = torch.arange(40).chunk(parts)[dist.rank()]
    counted = Confusion(Pairs.every(2, 0))
    counted.scores = Scores({"a": Distance(1.0)}, 2)
    counted.update(logits_NC[mine_n], labels_N[mine_n])
    counted.reduce()
    return counted.scores.sums_MC2, values(counted.scores)["a"]


def test_ranks_sum_scores_to_what_one_finds() -> None:
    sums_MC2, value = summed(1)
    for theirs_MC2, theirs in run_ranks(summed, 2, 2):
        assert torch.equal(theirs_MC2, sums_MC2) and theirs == value


METRIC = """
import torch, random, os
from ltcore import Metric, plugins, dist
seen = []
@plugins.metric({name!r}, summary="an odd one")
class Odd(Metric):
    def score(self, logits_BC, labels_B):
        {score}
    def value(self, counted):
        {value}
"""
BROKEN = {
    "draws": ("return torch.rand(len(labels_B))", "return counted.scores_C.sum()", "global generator of torch"),
    "draws too": ("return None", "return random.random()", "global generator of random"),
    "compares a batch": (
        "return (logits_BC[:, 0] - logits_BC[:, 0].mean()).abs()",
        "return counted.scores_C.sum()",
        "batches",
    ),
    "asks for the rank": ("return logits_BC[:, 0] + dist.rank()", "return counted.scores_C.sum()", "two ranks"),
    "reads the environment": ("return None", "return 1.0 + int(os.environ.get('RANK', 0))", "two ranks"),
    "remembers": ("seen.append(1); return None", "return float(len(seen))", "first it is"),
    "divides by zero": ("return None", "return 1 / counted.samples_C.min()", "with two classes alone"),
    "is no number": ("return None", "return 'high'", "expected a number"),
    "reduces": ("return logits_BC.mean()", "return 0.0", "expected a number for each"),
    "spoils": ("logits_BC.zero_(); return None", "return 0.0", "in place"),
    "has no value": ("return None", "return None", "it is None with no attributes"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_metric_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, value, reason = BROKEN[what]
    (tmp_path / "odd_metric.py").write_text(METRIC.format(name="odd_one", score=score, value=value))
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = [outcome.problem for outcome in check_plugin("odd_metric") if outcome.problem]
    assert any(reason in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["top1", "ncm_top1", "ncm_mine", "few"])
def test_taken_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_metric.py").write_text(METRIC.format(name=name, score="return None", value="return 0.0"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=f"plugin odd_metric: the metric '{name}' exists already in ltcore"):
        load_run("cifar100_lt_ce", {"plugins": "odd_metric"})
    with pytest.raises(PluginError, match="exists already in ltcore"):
        keys.methods()
