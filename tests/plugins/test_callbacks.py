"""Callbacks read, log and stop, and change nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.config.schema import RunConfig
from ltcore.config.sweep import read_sweep
from ltcore.errors import CheckpointError, ConfigError, PluginError
from ltcore.plugins import distributions, loading
from ltcore.training import callbacks
from ltcore.training import checkpoint as ckpt
from ltcore.training.context import StopRequested
from ltcore.training.same_run import differences, refuse_other_end
from ltcore.training.switches import SWITCHES
from ltcore.tuning.ends import check_same_ends
from ltcore.tuning.identity import check_same_sweep, identity
from tests.ddp import run_ranks
from tests.records import run_record, sweep_record
from tests.training.runs import Rank, run, stage2_run, tiny_run

TIMES = {"time_s", "images_per_s", "data_wait_fraction", "checkpoint_s", "memory_bytes"}

CALLBACK = """\
from dataclasses import dataclass
from ltcore import Callback, plugins
@plugins.callback("odd", summary="an odd one")
class Odd(Callback):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        when: str = "epoch_end"
        \"\"\"Where it does what it does.\"\"\"
    def _do(self, ctx):
        {body}
    def __init__(self, cfg):
        super().__init__(cfg)
        setattr(self, "on_" + cfg.when, self._do)
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def own_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key.startswith("callback/")}


@pytest.fixture
def watched(installed: Path) -> RunConfig:
    return tiny_run().replace({"callbacks.watch": "on"})


def test_a_run_with_a_callback_that_draws_and_spoils_is_bitwise_the_same(
    watched: RunConfig, tiny_shards: str, tmp_path: Path
) -> None:
    """It sets seeds, draws from every generator, and writes zeros into the network that it was given."""
    run(tiny_run(), tiny_shards, tmp_path / "plain", test=True)
    done = run(watched, tiny_shards, tmp_path / "watched", test=True)
    assert done["status"] == "finished" and watched.plugins == ("example_parts.watch==0.3",)
    plain, other = rows(tmp_path / "plain"), rows(tmp_path / "watched")
    assert len(plain) == len(other) == 3
    for before, after in zip(plain, other, strict=True):
        same = {key: value for key, value in after.items() if key not in TIMES and key not in own_columns(after)}
        assert same == {key: value for key, value in before.items() if key not in TIMES}
    assert list(own_columns(other[0])) == ["callback/watch/drawn", "callback/watch/weights"]
    assert list(own_columns(other[1])) == ["callback/watch/weights"]
    states = [ckpt.find(tmp_path / name / "checkpoints") for name in ("plain", "watched")]
    for key, value in states[0].model_state().items():
        assert torch.equal(value, states[1].model_state()[key]), key
    first = json.loads((tmp_path / "plain" / "run.json").read_text())
    assert done["test"] == first["test"]


def test_it_ends_a_run_which_stays_ended(watched: RunConfig, tiny_shards: str, tmp_path: Path) -> None:
    cfg = watched.replace({"callbacks.watch.last_epoch": 2})
    done = run(cfg, tiny_shards, tmp_path / "run")
    assert (done["status"], done["epochs_done"]) == ("finished", 2)
    assert done["reason"] == "callback watch at epoch 2: watched enough"
    assert run(cfg, tiny_shards, tmp_path / "run", test=True)["epochs_done"] == 2  # the test is all that was left


def test_it_is_called_in_stage_2(watched: RunConfig, tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "first")
    own = {"callbacks.watch.last_epoch": 2, "stage2.options.crt.epochs": 4}
    done = run(stage2_run(tmp_path / "first", "crt").replace(own), tiny_shards, tmp_path / "second")
    assert (done["epochs_done"], done["reason"]) == (2, "callback watch at epoch 2: watched enough")
    assert all("callback/watch/weights" in row for row in rows(tmp_path / "second"))


def test_it_may_be_changed_when_a_run_is_continued_but_not_where_it_ended_one(
    watched: RunConfig, tiny_shards: str, tmp_path: Path
) -> None:
    with pytest.raises(StopRequested):
        run(watched, tiny_shards, tmp_path / "run", until=1)
    second = watched.replace({"callbacks.watch.last_epoch": 2})
    assert run(second, tiny_shards, tmp_path / "run")["epochs_done"] == 2
    for other in ({"callbacks.watch.last_epoch": 3}, {"callbacks.watch": None}):
        with pytest.raises(CheckpointError, match=r"was ended by callback watch, .*last_epoch: 2 there, "):
            run(second.replace(other), tiny_shards, tmp_path / "run")
    run(second.replace({"callbacks.watch": None}), tiny_shards, tmp_path / "plain", test=True)
    run(second, tiny_shards, tmp_path / "plain", test=True)  # which it did not end


@pytest.mark.usefixtures("watched")
def test_a_repaired_callback_answers_for_no_run_that_it_ended_before() -> None:
    old = {"callbacks.watch.last_epoch": 2, "plugins": "other==1,example_parts.watch==0.3"}
    refuse_other_end("x", "early stopping at epoch 2", old, {})
    refuse_other_end(
        "x", "callback watch at epoch 2: enough", old, dict(old, seed=3, plugins="example_parts.watch==0.3")
    )
    with pytest.raises(
        CheckpointError, match=r"plugins: 'example_parts.watch==0.3' there, 'example_parts.watch==0.4' now"
    ):
        refuse_other_end("x", "callback watch at epoch 2: enough", old, {**old, "plugins": "example_parts.watch==0.4"})


def test_a_sweep_does_not_mix_trials_that_two_rules_ended(watched: RunConfig, tmp_path: Path) -> None:
    """Trials that ended do not start again; what the sweep itself varies differs between them."""
    base = watched.replace({"callbacks.watch.last_epoch": 2})
    config = {**base.to_flat(), "callbacks.watch.last_epoch": 3}
    ended = run_record(status="finished", reason="callback watch at epoch 3: watched enough", config=config)
    ended.write(str(tmp_path / "trials" / "00000"))
    run_record(config={**base.to_flat(), "plugins": "example_parts.watch==0.2"}).write(
        str(tmp_path / "trials" / "00001")
    )
    varied = read_sweep("tune_lpa", {"sweep.space.callbacks.watch.last_epoch": "choice:2,3"})
    check_same_ends(varied, base, str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"trials/00000 was ended by callback watch, .*last_epoch: 3 there, 2 now"
    ):
        check_same_ends(read_sweep("tune_lpa", {}), base, str(tmp_path))
    check_same_ends(read_sweep("tune_lpa", {}), tiny_run(), str(tmp_path))  # another sweep, and refused as such
    dataclasses.replace(ended, config={**config, "plugins": "example_parts.watch==0.2"}).write(
        str(tmp_path / "trials" / "00000")
    )
    with pytest.raises(CheckpointError, match=r"0.2' there, 'example_parts.watch==0.3' now"):
        check_same_ends(varied, base, str(tmp_path))


def test_variants_may_have_rules_of_their_own(watched: RunConfig, tmp_path: Path) -> None:
    base = watched.replace({"callbacks.watch.last_epoch": 9})
    config = {**base.to_flat(), "callbacks.watch.last_epoch": 3}
    ended = run_record(status="finished", reason="callback watch at epoch 3: watched enough", config=config)
    ended.write(str(tmp_path / "trials" / "quick-seed0"))
    words = {"sweep.variants.quick.callbacks.watch.last_epoch": 3, "sweep.variants.slow.train.epochs": 2}
    sweep = read_sweep("compare_methods", words)
    check_same_ends(sweep, base, str(tmp_path))
    check_same_ends(sweep, tiny_run(), str(tmp_path))  # whose variant alone has a callback
    dataclasses.replace(ended, config={**base.to_flat(), "callbacks.watch.last_epoch": 2}).write(
        str(tmp_path / "trials" / "slow-seed0")
    )
    with pytest.raises(CheckpointError, match=r"slow-seed0 .*last_epoch: 2 there, 9 now"):
        check_same_ends(sweep, base, str(tmp_path))


def _on_a_rank(site: str, tree: dict[str, Any], uri: str, folder: str) -> int:
    sys.path.insert(0, site)
    return int(run(RunConfig.from_dict(tree), uri, Path(folder), Rank())["epochs_done"])


@pytest.mark.slow
def test_all_ranks_end_where_the_first_is_told_to(
    watched: RunConfig, installed: Path, tiny_shards: str, tmp_path: Path
) -> None:
    cfg = watched.replace({"callbacks.watch.last_epoch": 2})
    assert run_ranks(_on_a_rank, 2, str(installed), cfg.to_dict(), tiny_shards, str(tmp_path / "run")) == [2, 2]
    found = rows(tmp_path / "run")
    assert len(found) == 2 and all("callback/watch/weights" in row for row in found)


@pytest.mark.parametrize(
    ("body", "when", "reason"),
    [
        ("raise KeyError('no\\nway')", "epoch_end", "failed in on_epoch_end (KeyError: 'no\\nway')"),
        (
            "ctx.log('x', float('nan'))",
            "evaluation",
            "failed in on_evaluation (ValueError: log('x', nan): expected a finite",
        ),
        ("ctx.log('x', 1.0)", "run_end", "failed in on_run_end (ValueError: the last row is written"),
        ("ctx.metrics['val/top1'] = 1.0", "epoch_end", "'mappingproxy' object does not support item assignment"),
        ("ctx.epoch = 7", "run_start", "failed in on_run_start (FrozenInstanceError: cannot assign to field 'epoch'"),
    ],
)
def test_an_exception_names_plugin_and_callback(
    body: str, when: str, reason: str, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_one.py").write_text(CALLBACK.format(body=body))
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = tiny_run(train__epochs=1).replace({"plugins": "odd_one", "callbacks.odd.when": when})
    with pytest.raises(PluginError) as failed:
        run(cfg, tiny_shards, tmp_path / "run")
    said = str(failed.value)
    assert said.startswith("callback odd of plugin odd_one failed in on_") and reason in said and "\n" not in said
    assert "callbacks.odd=null" in said
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["status"] == "failed" and said in stored["reason"] and stored["retryable"] is True


SPOILED = {
    "torch.backends.cudnn.benchmark = True": "torch.backends.cudnn.benchmark",
    "torch.backends.cudnn.allow_tf32 = False": "torch.backends.cudnn.allow_tf32, ",
    "torch.use_deterministic_algorithms(True, warn_only=True)": "torch.use_deterministic_algorithms",
    "torch.set_float32_matmul_precision('medium')": "torch.set_float32_matmul_precision, ",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "torch.set_float32_matmul_precision, ",
    "torch.set_default_dtype(torch.float64)": "torch.set_default_dtype",
    "torch.backends.cuda.enable_math_sdp(False)": "torch.backends.cuda.enable_math_sdp",
    "torch.set_autocast_enabled('cpu', True)": "torch.set_autocast_enabled('cpu') in",
    "torch.set_autocast_enabled('cuda', True)": "torch.set_autocast_enabled('cuda') in",
    "torch.set_autocast_dtype('cuda', torch.bfloat16)": "torch.set_autocast_dtype('cuda') in",
    "torch.set_default_device('meta')": "torch.set_default_device in",
    "torch.backends.cuda.matmul.allow_fp16_accumulation = True": "torch.backends.cuda.matmul.allow_fp16_accumulation in",
    "torch.set_flush_denormal(True)": "torch.set_flush_denormal in",
    "torch.nn.modules.module.register_module_forward_hook(print)": "the hooks of all modules",
    "torch.nn.modules.module.register_module_full_backward_hook(print)": "the hooks of all modules",
    "torch.manual_seed(1)": "",
}


@pytest.mark.parametrize("line", SPOILED)
def test_switches_that_it_changes_are_put_back_and_said_once(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "odd_one.py").write_text("import torch\n" + CALLBACK.format(body=line))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(callbacks, "_said", set())
    cfg = tiny_run().replace({"plugins": "odd_one", "callbacks.odd": "on"})
    before = {switch.name: switch.value() for switch in SWITCHES}
    with caplog.at_level("WARNING", "ltcore"):
        calls = callbacks.CallbackCalls(cfg, tmp_path, torch.nn.Linear(1, 1), 0)
        for epoch in (1, 2):
            calls.epoch_end(epoch, {})
            assert {switch.name: switch.value() for switch in SWITCHES} == before
    said = [record.getMessage() for record in caplog.records]
    assert (torch.full((), 1e-39) / 2).item() > 0 and not torch.nn.modules.module._has_any_global_hook()
    assert len(said) == (SPOILED[line] != "")
    if said:
        assert said[0].startswith(f"callback odd of plugin odd_one changed {SPOILED[line]}")
        assert said[0].endswith(" in on_epoch_end, which is put back: a callback changes nothing of its run")


def test_what_it_sees_is_frozen(
    installed: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltcore.callbacks import CALLBACKS

    seen: list[Any] = []
    cfg = tiny_run(train__epochs=1).replace({"callbacks.watch": "on"})
    monkeypatch.setattr(CALLBACKS["watch"].build, "on_run_end", lambda self, ctx: seen.append(ctx))
    run(cfg, tiny_shards, tmp_path / "run", test=True)
    (view,) = seen
    assert view.epoch == 1 and "test/top1" in view.metrics and view.config["train.epochs"] == 1
    assert view.run_uri == str(tmp_path / "run") and not view.model().training
    assert {field.name for field in dataclasses.fields(view)} == {
        "epoch", "metrics", "config", "run_uri", "log", "stop", "model",
    }  # fmt: skip


def test_a_callback_that_failed_may_be_repaired_or_left_out(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its error says: it determines no number, so the run goes on without it, or with other code of it."""
    with_it = {"plugins": "odd_one==sha256:1", "seed": 0}
    monkeypatch.setattr(loading, "determines_nothing", lambda entry: entry.startswith("odd_one=="))
    assert differences(with_it, {"seed": 0}) == {}
    assert differences(with_it, {"plugins": "odd_one==sha256:2", "seed": 0}) == {}
    assert differences(with_it, {"plugins": "losses==1", "seed": 0}).keys() == {"plugins"}


def test_a_sweep_goes_on_with_a_repaired_callback_and_without_one(beside: Path) -> None:
    def asked(**keys: str) -> dict[str, Any]:
        distributions.version_of.cache_clear()
        named = {key.replace("__", "."): value for key, value in keys.items()}
        return identity(read_sweep("tune_lpa", {"train.batch_size": "8", **named}))

    watching = asked(plugins="example_parts.watch", callbacks__watch="on")
    stored = sweep_record(search="random", identity=watching)
    (beside / "example_parts" / "watch.py").open("a").write("\n# repaired\n")
    check_same_sweep(stored, asked(plugins="example_parts.watch", callbacks__watch="on"), "/sweep")
    check_same_sweep(stored, asked(), "/sweep")
    earlier = sweep_record(search="random", identity={**watching, "plugins": ["example_parts.watch==sha256:0"]})
    check_same_sweep(earlier, asked(plugins="example_parts.watch"), "/sweep")
    with pytest.raises(
        ConfigError, match=r"another configuration \(plugins: None there, 'example_parts.losses==sha256:"
    ):
        check_same_sweep(stored, asked(plugins="example_parts.losses"), "/sweep")


def test_stage_2_has_no_callback_of_stage_1(watched: RunConfig, tiny_shards: str, tmp_path: Path) -> None:
    run(watched.replace({"callbacks.watch.last_epoch": 1}), tiny_shards, tmp_path / "first")
    done = run(stage2_run(tmp_path / "first", "ncm"), tiny_shards, tmp_path / "second")
    assert done["reason"] == "" and not own_columns(rows(tmp_path / "second")[-1])
