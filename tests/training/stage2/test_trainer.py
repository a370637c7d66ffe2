"""Stage 2 from a finished run to its own checkpoint: an ordinary network with another classifier."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ltcore
from ltcore.errors import NumericError
from ltcore.objective.registry import STAGE2
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.evaluate import Evaluator
from ltcore.training.stage2 import trainer as stage2
from tests.commands import Command
from tests.training.runs import TERMS, StopAfter, WholeRun, assert_equal_runs, run, stage2_run, tiny_run, weights

SHORT = {
    "crt": {"epochs": 3, "batch_size": 16},
    "lws": {"epochs": 2, "batch_size": 16},
    "dro": {"epochs": 2, "batch_size": 16},
    "weight_balance": {"epochs": 2, "batch_size": 16},
    "tau_norm": {"tau": "0.5,1,1.5"},
    "ncm": {},
}
"""Short courses, in several steps where there are steps."""
TRAINED = {"crt": 260, "lws": 4, "dro": 260, "weight_balance": 260, "tau_norm": 0, "ncm": 0}
"""Parameters that each trains: a factor for each of 4 classes, or their weights on 64 features and biases, or nothing."""


def short(method: str, **more: Any) -> dict[str, Any]:
    """``SHORT`` as keyword arguments of ``stage2_run``."""
    return {f"stage2__options__{method}__{key}": value for key, value in (SHORT[method] | more).items()}


@pytest.fixture
def train(command: Command, tmp_path: Path) -> Command:
    """``train.py`` of a packaged recipe of stage 2, into a storage of its own."""

    def call(recipe: str, from_run: Path, *words: str) -> SimpleNamespace:
        small = ("train.threads=1", "train.precision=fp32", "tracking.wandb=false", "tracking.tensorboard=false")
        where = (f"--storage={tmp_path / 'runs'}", f"--name={recipe}")
        return command("train", recipe, f"stage2.from_run={from_run}", "--engine=inline", *where, *small, *words)

    return call


def recipe_of(method: str) -> str:
    return f"cifar100_lt_{'dro_classifier' if method == 'dro' else method}"


# ---- the whole way


@pytest.mark.parametrize("method", STAGE2)
def test_train_py_makes_a_network_that_evaluate_py_judges_alike(
    train: Command, command: Command, tmp_path: Path, tiny_shards: str, stage1: Path, method: str
) -> None:
    more = [f"{key.replace('__', '.')}={value}" for key, value in short(method).items()]
    done = train(recipe_of(method), stage1, *more)
    assert done.code == 0, done.err
    assert f"stage 2 ({method}) of {stage1}" in done.err
    run_dir = tmp_path / "runs" / recipe_of(method)
    record = json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "finished" and record["config"]["stage2.method"] == method
    assert record["epochs_done"] == record["epochs_planned"]
    assert record["stage1"]["run"] == str(stage1) and record["stage1"]["name"] == "tiny"

    assert record["trained_parameters"] == TRAINED[method]

    first, result = ckpt.read(stage1).model_state(), weights(run_dir)
    assert record["parameters"] == sum(result[name].numel() for name in result if name.endswith(("weight", "bias")))
    backbone = [name for name in first if name.startswith("backbone.")]
    assert any("running_var" in name for name in backbone) and any("num_batches" in name for name in backbone)
    for name in backbone:
        assert torch.equal(first[name], result[name]), name
    assert not torch.equal(first["heads.0.weight"], result["heads.0.weight"])

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]
    assert [row["epoch"] for row in rows] == list(range(1, record["epochs_planned"] + 1))
    assert all(math.isfinite(row["train/loss"]) and 0 <= row["val/top1"] <= 1 for row in rows)
    assert record["best"]["val/balanced_accuracy"] == max(row["val/balanced_accuracy"] for row in rows)

    for checkpoint, section in ((run_dir, "test_best"), (ckpt.find(run_dir / "checkpoints").path, "test")):  # type: ignore[union-attr]
        judged = command("evaluate", checkpoint, "--data", tiny_shards, "--output", tmp_path / "metrics.json")
        assert judged.code == 0, judged.err
        judged_tests = json.loads((tmp_path / "metrics.json").read_text())["splits"]
        assert judged_tests["test"] == pytest.approx(record[section]["test"], abs=1e-6)  # ECE has last digits
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ltcore.load(run_dir)(images).sum(1).tolist() == pytest.approx([1.0] * 3)

    again = train(recipe_of(method), stage1, *more)
    assert again.code == 0, "what has finished is shown, not repeated"
    assert json.loads((run_dir / "run.json").read_text()) == record


def test_the_kept_tau_is_the_best_on_validation_and_its_course_is_on_record(
    tiny_shards: str, tmp_path: Path, stage1: Path
) -> None:
    cfg = stage2_run(stage1, "tau_norm", stage2__options__tau_norm__tau="0,1.5,0.5,1")
    record = run(cfg, tiny_shards, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["stage2/tau"] for row in rows] == [0, 1.5, 0.5, 1]
    best = max(rows, key=lambda row: row["val/balanced_accuracy"])
    assert record["last"] == record["best"] and record["best"]["stage2/tau"] == best["stage2/tau"]
    assert record["test"] == record["test_best"]
    first, result = ckpt.read(stage1).model_state(), weights(tmp_path / "run")
    length_C1 = first["heads.0.weight"].norm(dim=1, keepdim=True)
    assert torch.equal(result["heads.0.weight"], first["heads.0.weight"] / length_C1 ** best["stage2/tau"])
    assert result["heads.0.bias"].abs().max() == 0


def test_the_class_means_are_those_of_the_training_images(tiny_shards: str, tmp_path: Path, stage1: Path) -> None:
    from ltcore.data.augment.augment import Augment
    from ltcore.data.loading.factory import make_loader

    record = run(stage2_run(stage1, "ncm", stage2__options__ncm__metric="euclidean"), tiny_shards, tmp_path / "run")
    assert record["config"]["model.head"] == "linear"
    predictor = ltcore.load(stage1)
    loader = make_loader(predictor.config.data, tiny_shards, batch_size=1, seed=0)
    augment = Augment(predictor.config.augment, seed=0, mean=predictor.mean, std=predictor.std, num_views=1)
    batch = augment.evaluate(next(loader.eval_batches("train", 64)))
    with torch.no_grad():
        features_BD = predictor.net(batch.images_VBCHW[0]).features_BD
    for c in range(4):
        mean_D = features_BD[batch.labels_B == c].mean(0)
        torch.testing.assert_close(weights(tmp_path / "run")["heads.0.weight"][c], mean_D, rtol=1e-4, atol=1e-5)


def test_training_a_classifier_lowers_the_loss(tiny_shards: str, tmp_path: Path, stage1: Path) -> None:
    run(stage2_run(stage1, "crt", **short("crt", epochs=6)), tiny_shards, tmp_path / "run")
    losses = [json.loads(line)["train/loss"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert losses[-1] < 0.7 * losses[0]


def test_no_class_weight_is_longer_than_the_limit_of_weight_balance(
    tiny_shards: str, tmp_path: Path, stage1: Path
) -> None:
    """The limit is the shortest weight of stage 1, so that those of the other classes would be longer without it."""
    cfg = stage2_run(stage1, "weight_balance", **short("weight_balance", max_norm=0.0))
    run(cfg, tiny_shards, tmp_path / "run")
    limit = float(ckpt.read(stage1).model_state()["heads.0.weight"].norm(dim=1).min())
    lengths_C = weights(tmp_path / "run")["heads.0.weight"].norm(dim=1)
    assert float(lengths_C.max()) == pytest.approx(limit, rel=1e-5)


def test_reports_show_a_run_of_stage_2(tiny_shards: str, tmp_path: Path, stage1: Path) -> None:
    from ltcore.reporting.report import make_report

    run(stage2_run(stage1, "crt", **short("crt")), tiny_shards, tmp_path / "crt")
    assert "stage2.method" in make_report([stage1, tmp_path / "crt"], tmp_path / "report.html").read_text()


# ---- bits


@pytest.mark.parametrize("method", ["crt", "weight_balance", "ncm"])
def test_twice_the_same_is_bitwise_the_same(tiny_shards: str, tmp_path: Path, stage1: Path, method: str) -> None:
    for name in ("a", "b"):
        run(stage2_run(stage1, method, **short(method)), tiny_shards, tmp_path / name)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def test_the_seed_is_that_of_stage_2(tiny_shards: str, tmp_path: Path, stage1: Path) -> None:
    for seed in (0, 1):
        record = run(stage2_run(stage1, "crt", **short("crt"), seed=seed), tiny_shards, tmp_path / str(seed))
        assert (record["seed"], record["stage1"]["seed"]) == (seed, 0)
    a, b = (weights(tmp_path / str(seed)) for seed in (0, 1))
    assert not torch.equal(a["heads.0.weight"], b["heads.0.weight"])
    assert torch.equal(a["backbone.trunk.conv1.weight"], b["backbone.trunk.conv1.weight"])


@pytest.mark.parametrize("questions", [0, 2, 4, 5])
def test_a_stopped_run_leaves_nothing_to_take_for_whole_and_starts_again(
    tiny_shards: str, whole_run: WholeRun, tmp_path: Path, stage1: Path, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stage2, "DECIDE_EVERY", 3
    )  # stops inside epochs too; the first two questions are about features
    cfg = stage2_run(stage1, "crt", **short("crt"))
    whole = whole_run(cfg)
    with pytest.raises(StopRequested, match=r"stopped in epoch \d of 3 of stage 2"):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(questions))
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "stopped"
    assert not (tmp_path / "cut" / "checkpoints").exists()
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(whole, tmp_path / "cut")


def test_a_run_that_died_before_its_test_starts_again(
    tiny_shards: str, tmp_path: Path, stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = stage2_run(stage1, "crt", **short("crt"))
    whole = run(cfg, tiny_shards, tmp_path / "whole")

    def dies(*_: Any, **__: Any) -> None:
        raise RuntimeError("the node is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "test", dies)
        with pytest.raises(RuntimeError):
            run(cfg, tiny_shards, tmp_path / "cut")
    assert run(cfg, tiny_shards, tmp_path / "cut")["test"] == whole["test"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_an_ordinary_run_says_nothing_of_stage_2(stage1: Path) -> None:
    assert not any("stage2" in key for key in json.loads((stage1 / "run.json").read_text())["config"])
    assert not any("stage2" in key for key in ckpt.read(stage1).meta["config"])
    assert "stage2" not in (stage1 / "config.yaml").read_text()


# ---- what stage 1 was


def test_terms_and_their_projection_stay_behind(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(**TERMS, train__epochs=2), tiny_shards, tmp_path / "stage1")
    record = run(stage2_run(tmp_path / "stage1", "dro", **short("dro")), tiny_shards, tmp_path / "run")
    assert record["config"]["objective.terms.dro.weight"] == 0.5, "the record says what the features were made by"
    assert any(name.startswith("projection.") for name in weights(tmp_path / "stage1"))
    assert not any(name.startswith("projection.") for name in weights(tmp_path / "run"))


@pytest.mark.parametrize("method", ["crt", "dro", "ncm"])
def test_several_experts_with_cosine_heads(tiny_shards: str, tmp_path: Path, method: str) -> None:
    ride = {"base": "ride", "base_options.ride.beta": 0.0}
    model = {"num_experts": 2, "head": "cosine", "cosine_scale": 30.0}
    changes = {f"objective.{key}": value for key, value in ride.items()} | {f"model.{k}": v for k, v in model.items()}
    run(tiny_run(**changes, train__epochs=2), tiny_shards, tmp_path / "stage1")
    record = run(stage2_run(tmp_path / "stage1", method, **short(method)), tiny_shards, tmp_path / "run")
    assert (record["config"]["model.head"], record["config"]["model.num_experts"]) == ("cosine", 2)
    first, result = weights(tmp_path / "stage1"), weights(tmp_path / "run")
    for expert in range(2):
        assert not torch.equal(first[f"heads.{expert}.weight"], result[f"heads.{expert}.weight"])
    from ltcore.training.predict import evaluate

    found = evaluate(ltcore.load(tmp_path / "run"), tiny_shards, [], [])["splits"]["test"]
    assert found == pytest.approx(record["test_best"]["test"], abs=1e-6)  # ECE has last digits


def test_features_in_half_precision(tiny_shards: str, tmp_path: Path, stage1: Path) -> None:
    for dtype in ("float32", "float16"):
        cfg = stage2_run(stage1, "crt", **short("crt"), stage2__feature_dtype=dtype)
        run(cfg, tiny_shards, tmp_path / dtype)
    a, b = (weights(tmp_path / dtype)["heads.0.weight"] for dtype in ("float32", "float16"))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_without_a_validation_split_the_last_epoch_is_all_there_is(
    tiny_shards: str, tmp_path: Path, stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage2.Stage2Trainer, "_validate", lambda self: {})
    record = run(stage2_run(stage1, "crt", **short("crt")), tiny_shards, tmp_path / "crt")
    assert record["best"] == {} and record["test_best"] == {} and record["test"]
    one = stage2_run(stage1, "tau_norm", stage2__options__tau_norm__tau="0.7")
    assert run(one, tiny_shards, tmp_path / "one")["last"]["stage2/tau"] == 0.7


def test_a_loss_that_is_not_finite_names_the_key_to_lower(tiny_shards: str, tmp_path: Path, stage1: Path) -> None:
    cfg = stage2_run(stage1, "crt", **short("crt", lr=1e30))
    with pytest.raises(NumericError, match=r"Stage 2, epoch \d+: the loss is not finite .*Lower stage2.options.crt.lr"):
        run(cfg, tiny_shards, tmp_path / "run", LocalContext(torch.device("cpu")))
    assert not (tmp_path / "run" / "checkpoints").exists()
