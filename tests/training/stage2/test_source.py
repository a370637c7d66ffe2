"""What stage 2 takes over from the run it starts from, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ltcore import dist
from ltcore.config.keys import comes_from_stage1
from ltcore.config.load import check_sweep, load_run, load_sweep
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.errors import CheckpointError, ConfigError, NumericError
from ltcore.objective.registry import BASES, STAGE2
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.run import delete_run
from ltcore.training.stage2.source import _take_over, resolved
from tests.conftest import make_tiny
from tests.training.runs import StopAfter, run, stage2_run, tiny_run

if TYPE_CHECKING:  # pytest itself imports the module, for its fixtures
    from tests.s3 import Bucket

pytest_plugins = ["tests.s3"]


def refused(cfg: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(cfg)
    return str(caught.value)


# ---- taken over


def test_everything_but_its_own_keys_comes_from_stage_1(stage1: Path) -> None:
    cfg = resolved(stage2_run(stage1, "crt", seed=7, train__eval_batch_size=9))
    first = json.loads((stage1 / "run.json").read_text())["config"]
    for key, value in cfg.to_flat().items():
        if comes_from_stage1(key):
            assert value == first[key], key
    assert (cfg.name, cfg.seed, cfg.train.eval_batch_size, cfg.data.uri) == ("crt", 7, 9, first["data.uri"])
    assert (cfg.train.epochs, cfg.epochs, cfg.model.name) == (4, 10, "resnet8")
    assert resolved(cfg) == cfg
    assert resolved(tiny_run()) == tiny_run(), "an ordinary run stays what it is"


def test_options_of_the_loss_that_are_left_away_come_from_stage_1() -> None:
    focal = {"objective.base": "focal"}
    first = tiny_run().replace({**focal, "objective.base_options.focal.gamma": 1.5})
    taken = _take_over(stage2_run("/nowhere", "crt", **focal), first)
    assert taken.objective == first.objective
    with pytest.raises(ConfigError, match=r"focal.gamma=3.0 contradicts .* where it is 1.5"):
        _take_over(stage2_run("/nowhere", "crt", **focal, **{"objective.base_options.focal.gamma": 3.0}), first)


def test_paths_become_absolute_and_data_may_be_given(
    stage1: Path, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stage1.parent)
    cfg = resolved(stage2_run(Path(stage1.name), "crt", data__uri=tiny_shards))
    assert cfg.stage2 is not None and cfg.stage2.from_run == str(stage1)
    assert cfg.data.uri == tiny_shards
    monkeypatch.setenv("HOME", str(stage1.parent))
    assert resolved(stage2_run(Path("~") / stage1.name, "crt")) == resolved(stage2_run(stage1, "crt"))


def test_a_checkpoint_may_be_given_by_name(stage1: Path, tiny_shards: str, tmp_path: Path) -> None:
    last = ckpt.find(stage1 / "checkpoints")
    assert last is not None
    record = run(stage2_run(last.path, "ncm"), tiny_shards, tmp_path / "run")
    assert record["stage1"]["checkpoint"] == last.path.name
    assert (record["stage1"]["epoch"], record["stage1"]["step"]) == (4, last.meta["step"])


def test_the_means_by_cosine_are_a_cosine_head(stage1: Path) -> None:
    cfg = resolved(stage2_run(stage1, "ncm"))
    assert cfg.model.head == "cosine"
    assert resolved(cfg) == cfg
    assert resolved(stage2_run(stage1, "ncm", stage2__options__ncm__metric="euclidean")).model.head == "linear"


def test_a_run_in_an_object_store(bucket: Bucket, tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, f"{bucket.uri}/stage1")  # type: ignore[arg-type]
    bucket.server.requests.seen.clear()
    cfg = resolved(stage2_run(f"{bucket.uri}/stage1", "ncm"))
    assert cfg.model.name == "resnet8"
    assert not any(path.endswith((".pt",)) for _, path in bucket.server.requests.seen), (
        "no weights are fetched for keys"
    )
    record = run(stage2_run(f"{bucket.uri}/stage1", "ncm"), tiny_shards, tmp_path / "run")
    assert record["stage1"]["run"] == f"{bucket.uri}/stage1"
    with pytest.raises(CheckpointError, match=r"nothing-here is neither a run nor a checkpoint"):
        resolved(stage2_run(f"{bucket.uri}/nothing-here", "ncm"))


# ---- refused


def test_a_key_that_contradicts_stage_1_is_named(stage1: Path) -> None:
    for key, value, there in (
        ("model__name", "resnet20", "resnet8"),
        ("train__epochs", 9, "4"),
        ("objective__terms__dro__weight", 0.5, "not set"),
        ("augment__view1", "none", "crop"),
    ):
        text = refused(stage2_run(stage1, "crt", **{key: value}))
        name = key.replace("__", ".")
        assert text.startswith(f"{name}={value} contradicts stage2.from_run={stage1}, where it is {there}: "), text
        assert text.endswith("Leave the key away.")
    same = stage2_run(stage1, "crt", model__name="resnet8", train__epochs=4)
    assert resolved(same) == resolved(stage2_run(stage1, "crt"))


def test_what_is_no_finished_run(stage1: Path, tiny_shards: str, tmp_path: Path) -> None:
    assert refused(stage2_run(Path(), "crt", stage2__from_run="")).startswith("stage2.from_run is empty: which run's")
    with pytest.raises(
        CheckpointError, match=r"from_run=.*nowhere is neither a run nor a checkpoint: expected meta.json"
    ):
        resolved(stage2_run(tmp_path / "nowhere", "crt"))
    with pytest.raises(StopRequested):
        run(tiny_run(), tiny_shards, tmp_path / "cut", StopAfter(0))
    text = refused(stage2_run(tmp_path / "cut", "crt"))
    assert "is a run that stopped after 1 of 3 epochs. Let it finish" in text
    found = ckpt.find(tmp_path / "cut" / "checkpoints")
    assert found is not None
    assert resolved(stage2_run(found.path, "crt")).model.name == "resnet8", "a checkpoint by name is as good as it is"


def test_stage_2_of_stage_2(stage1: Path, tiny_shards: str, tmp_path: Path) -> None:
    run(stage2_run(stage1, "ncm"), tiny_shards, tmp_path / "ncm")
    text = refused(stage2_run(tmp_path / "ncm", "crt"))
    assert re.search(rf"is a run of stage 2 itself, of method ncm: .* Start from {stage1}", text)


BALANCED: dict[str, dict[str, Any]] = {
    "balanced_softmax": {},
    "logit_adjust": {},
    "class_balanced": {},
    "paco": {},
    "gpaco": {},
    "ldam": {"model.head": "cosine", "model.cosine_scale": 30.0},
    "ride": {"model.head": "cosine", "model.cosine_scale": 30.0, "model.num_experts": 2},
    "sade": {"model.num_experts": 3},
    "bbn": {"model.bilateral": True},
}
PLAIN: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "focal": {},
    "lff": {},
    "logit_adjust": {"objective.base_options.logit_adjust.tau": 0.0},
    "class_balanced": {"objective.base_options.class_balanced.beta": 0.0},
    "ldam": {**BALANCED["ldam"], "objective.base_options.ldam.beta": 0.0},
    "ride": {**BALANCED["ride"], "objective.base_options.ride.beta": 0.0},
}


def test_every_base_either_balances_or_may_be_followed() -> None:
    assert set(BALANCED) | set(PLAIN) == set(BASES)


@pytest.mark.parametrize("base", BALANCED)
def test_classes_are_not_balanced_twice(base: str) -> None:
    for method in STAGE2:
        with pytest.raises(ConfigError) as caught:
            tiny_run(**BALANCED[base], objective__base=base).replace({"stage2.method": method})
        text = str(caught.value)
        assert text.startswith(f"stage2 does not go with objective.base={base}, which "), text
        assert "balanced twice" in text and "Use that run as it is" in text


@pytest.mark.parametrize("base", PLAIN)
def test_a_base_that_does_not_balance_may_be_followed(base: str) -> None:
    cfg = tiny_run(**PLAIN[base], objective__base=base).replace({"stage2.method": "crt"})
    assert cfg.stage2 is not None


def test_the_base_that_counts_is_that_of_the_run(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(objective__base="balanced_softmax", train__epochs=1), tiny_shards, tmp_path / "balanced")
    assert "does not go with objective.base=balanced_softmax, which adds the log class prior" in refused(
        stage2_run(tmp_path / "balanced", "crt")
    )


@pytest.mark.parametrize("method", [name for name, row in STAGE2.items() if row.build.linear_only])
def test_what_acts_on_the_lengths_of_weights_needs_a_linear_head(method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"stage2.method={method} does not go with model.head=cosine, which divides by"
    ):
        tiny_run(model__head="cosine").replace({"stage2.method": method})
    assert {"tau_norm", "lws", "weight_balance"} == {n for n, row in STAGE2.items() if row.build.linear_only}


@pytest.mark.parametrize("method", STAGE2)
def test_a_classifier_that_evaluates_otherwise_than_it_trains_may_only_be_replaced(method: str) -> None:
    keys = {"model.head": "tde", "stage2.method": method}
    if method == "ncm":
        assert tiny_run().replace(keys).stage2 is not None
        return
    with pytest.raises(ConfigError, match=rf"stage2.method={method} does not go with model.head=tde, which averages"):
        tiny_run().replace(keys)


def test_other_data(stage1: Path, tmp_path: Path) -> None:
    make_tiny(str(tmp_path / "data"))
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "name": "other"}))
    with pytest.raises(CheckpointError, match=r"was trained on data [0-9a-f]{12}, now data.uri leads to [0-9a-f]{12}"):
        run(stage2_run(stage1, "ncm"), str(tmp_path / "data"), tmp_path / "run")


def test_several_workers(stage1: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_distributed", lambda: False)  # nor are there two
    ctx = LocalContext()
    ctx.world = 2
    with pytest.raises(ConfigError, match=r"Stage 2 was given 2 workers.*Leave --workers away"):
        run(stage2_run(stage1, "ncm"), tiny_shards, tmp_path / "run", ctx)
    from ltcore.cli.parsers import read_train
    from ltcore.cli.train import train

    words = ["cifar100_lt_ncm", f"stage2.from_run={stage1}", "--workers=1-2", f"--storage={tmp_path}"]
    with pytest.raises(ConfigError, match="Stage 2 was given 2 workers"):
        train(read_train(None, words))


def test_classifiers_that_are_not_finite_are_said_with_what_to_change(
    stage1: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.objective.stage2.tau_norm.tau_normalized", lambda weight_CD, tau: weight_CD * math.inf)
    cfg = stage2_run(stage1, "tau_norm", stage2__options__tau_norm__tau="0.5")
    with pytest.raises(NumericError, match=r"not finite .*\. Give smaller exponents as stage2\.options\.tau_norm\.tau"):
        run(cfg, tiny_shards, tmp_path / "run")


def test_tau_without_validation(
    stage1: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.training.stage2.trainer.Stage2Trainer._validate", lambda self: {})
    with pytest.raises(
        ConfigError, match=r"tau_norm chooses by train.select=val/balanced_accuracy, .*options\.tau_norm\.tau=1\.0"
    ):
        run(stage2_run(stage1, "tau_norm"), tiny_shards, tmp_path / "run")


def test_the_name_of_another_run(stage1: Path, tiny_shards: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run(stage2_run(stage1, "ncm"), tiny_shards, run_dir)
    other = Path(shutil.copytree(stage1, tmp_path / "other"))
    with pytest.raises(CheckpointError, match=r"run belongs to another configuration \(stage2.from_run: .*--fresh"):
        run(stage2_run(other, "ncm"), tiny_shards, run_dir)
    delete_run(str(run_dir))
    assert run(stage2_run(other, "ncm"), tiny_shards, run_dir)["stage1"]["run"] == str(other)


def test_the_directory_of_stage_1_itself_is_not_written_over(stage1: Path, tiny_shards: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stage1, tmp_path / "copy"))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="belongs to another configuration"):
            run(stage2_run(stage1, "ncm"), tiny_shards, copy)
        (copy / "run.json").unlink(missing_ok=True)  # then its checkpoints still say whose it is
    assert ckpt.find(copy / "checkpoints", "best") is not None


def test_stage_1_is_not_removed_by_its_own_name(stage1: Path, tmp_path: Path) -> None:
    from ltcore.cli.parsers import read_train
    from ltcore.cli.train import train

    copy = Path(shutil.copytree(stage1, tmp_path / "first"))
    for where in (copy, copy / "checkpoints" / ckpt.read(copy).path.name):
        words = ["cifar100_lt_ncm", f"stage2.from_run={where}", "--name=first", f"--storage={tmp_path}", "--fresh"]
        with pytest.raises(ConfigError, match=r"--name first is the run that stage 2 starts from .* another --name"):
            train(read_train(None, words))
    assert (copy / "run.json").exists()


def test_a_sweep_trains_stage_1() -> None:
    sweep, overrides = read_sweep("tune_lpa"), {"sweep.space.stage2.options.crt.lr": "log:0.01,1"}
    with pytest.raises(ConfigError, match=r"^stage2: a sweep trains stage 1\."):
        check_sweep(sweep, load_run("cifar100_lt_ncm"))
    with pytest.raises(ConfigError, match=r"^stage2: a sweep trains stage 1\."):
        load_sweep(read_sweep("tune_lpa", {**overrides, "objective.base": "cross_entropy"}))
