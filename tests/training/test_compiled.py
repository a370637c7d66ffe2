"""``train.compile``: one graph without breaks, the numbers of the plain step, and nothing of it in a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from ltcore.batch import Batch
from ltcore.config.optim import OptimConfig
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, ConfigError
from ltcore.models.recompute import recompute_
from ltcore.stats import ClassStats
from ltcore.training import compiled, trainer
from ltcore.training.build import build_modules, parallel
from ltcore.training.compiled import CompiledStep
from ltcore.training.descent import Descent
from ltcore.training.step import TrainStep
from tests.ddp import run_ranks
from tests.training import runs
from tests.training.runs import TERMS, StopAfter, assert_equal_runs, plain_steps, run, tiny_run, weights

CPU = torch.device("cpu")
STEPS = 5
OF_LPA = {key: value for key, value in TERMS.items() if ".lpa." in key}
PACO = {"objective.base": "paco", "objective.base_options.paco.queue_size": 16}
CASES: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "balanced_softmax": {"objective.base": "balanced_softmax"},
    "paco+lpa": PACO | OF_LPA,
    "all terms": {"objective.base": "balanced_softmax", **TERMS},
    "second network": {"objective.base": "lff"},
    "ghost batch": {"model.ghost_batch": 4},
}


def traced_steps(config: dict[str, Any], uri: str) -> dict[str, Any]:
    """As ``plain_steps``, through the tracing and differentiation of torch.compile but without generated code.

    Also returns how often the graph broke.
    """
    torch._dynamo.reset()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "parallel", lambda step, device: parallel(CompiledStep(step, backend="aot_eager"), device))
        found = plain_steps(config, uri, STEPS)
    return found | {"breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"]["unique_graphs"]}


def assert_same(plain: dict[str, Any], traced: dict[str, Any]) -> None:
    """To the bit, since the same kernels run."""
    assert traced["breaks"] == 0
    assert torch.equal(plain["losses"], traced["losses"])
    for kind in ("gradients", "state", "memories"):
        assert plain[kind].keys() == traced[kind].keys()
        assert all(torch.equal(value, traced[kind][name]) for name, value in plain[kind].items())


@pytest.mark.slow
@pytest.mark.parametrize("own", ["", "elsewhere"])
def test_compiled_code_is_kept_where_other_caches_are(own: str, tmp_path: Path) -> None:
    """The folder for temporary files, which torch takes by default, ends with a worker's Ray."""
    environment = {key: value for key, value in os.environ.items() if key != compiled.COMPILED}
    environment |= {"LTCORE_CACHE": str(tmp_path)} | ({compiled.COMPILED: str(tmp_path / own)} if own else {})
    code = "import ltcore.training.trainer, torch._dynamo; print(torch._dynamo.package.cache_dir())"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(tmp_path / (own or "compiled"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_step_is_one_graph(tiny_shards: str, name: str) -> None:
    """The second graph has the progress as a variable; further ones begin with a term."""
    config = tiny_run(**CASES[name]).to_dict()
    traced = traced_steps(config, tiny_shards)
    assert_same(plain_steps(config, tiny_shards, STEPS), traced)
    assert 2 <= traced["graphs"] <= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "tune"),
    [
        (network, tune)
        for network in ("test_vit", "test_resnet")
        for tune in ("full", "head", "bias", "norm", "lora", "partial:1")
    ]
    + [("test_vit", "adaptformer")],
)
def test_every_way_to_tune_is_one_graph(network: str, tune: str) -> None:
    """Hooks, parametrizations and frozen running statistics included; a break would be an error here."""
    pytest.importorskip("timm")
    torch._dynamo.reset()
    counters.clear()
    cfg = tiny_run(model__name=f"timm:{network}", model__tune=tune, objective__base="balanced_softmax")
    net, objective = build_modules(cfg, 4, ClassStats(torch.tensor([4, 3, 2, 1]), ("many",) * 4), 10)
    step = TrainStep(net, objective, None, None).train()
    images = torch.randn(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(4), torch.arange(4), torch.zeros(4, dtype=torch.long))
    plain = step(batch, 0.5)[0]
    traced = torch.compile(step.forward, backend="eager", fullgraph=True)(batch, 0.5)[0]
    assert torch.equal(traced, plain) and counters["stats"]["unique_graphs"] == 1
    traced.backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


@pytest.mark.slow
def test_adapters_with_a_norm_of_their_own_are_one_graph_under_recomputation() -> None:
    """What they keep from the block's norm to its MLP does not break the graph of a block."""
    pytest.importorskip("timm")
    torch._dynamo.reset()
    counters.clear()
    cfg = tiny_run(model__name="timm:test_vit", model__tune="adaptformer", model__adaptformer__norm="own")
    net, objective = build_modules(cfg, 4, ClassStats(torch.tensor([4, 3, 2, 1]), ("many",) * 4), 10)
    recompute_(net.backbone, cfg.model.name)
    step = TrainStep(net, objective, None, None).train()
    images = torch.randn(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(4), torch.arange(4), torch.zeros(4, dtype=torch.long))
    gradients = []
    for run_step in (step, CompiledStep(step, backend="aot_eager")):
        step.zero_grad()
        run_step(batch, 0.5)[0].backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_runs_of_one_process_are_all_compiled(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a trainer between them: together they have more graphs than torch's limit, which is lowered here."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(runs, "parallel", lambda step, device: CompiledStep(step, backend="aot_eager"))
    with torch._dynamo.config.patch(recompile_limit=3):
        for base in ("cross_entropy", "balanced_softmax", "logit_adjust", "focal", "class_balanced"):
            plain_steps(tiny_run(objective__base=base).to_dict(), tiny_shards, 3)
    assert counters["frames"]["total"] == counters["frames"]["ok"] == 6  # the second run knows that progress varies


@pytest.mark.slow
def test_a_run_compiles_what_an_earlier_one_of_its_process_had(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trials of one actor, each in a thread: CUDA graphs of another thread are not its own."""
    monkeypatch.setattr(compiled, "CompiledStep", partial(CompiledStep, backend="eager"))
    torch._dynamo.reset()
    graphs = []
    for name in ("first", "second"):
        counters.clear()
        with ThreadPoolExecutor(1) as thread:
            cfg = tiny_run(train__epochs=1, train__compile="default")
            thread.submit(run, cfg, tiny_shards, tmp_path / name).result()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.slow
def test_the_step_of_several_ranks_is_one_graph(tiny_shards: str) -> None:
    """With the collectives of its losses in it."""
    config = tiny_run(**CASES["paco+lpa"]).to_dict()
    plain, traced = (run_ranks(steps, 2, config, tiny_shards) for steps in (_float64_steps, traced_steps))
    assert_same(plain[0], traced[0])


def _float64_steps(config: dict[str, Any], uri: str) -> dict[str, Any]:
    return plain_steps(config, uri, STEPS)


@pytest.mark.slow
def test_generated_code_has_the_numbers_of_the_plain_step(
    tiny_shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5 in float32 over two epochs of five steps. A run that was cut in the second ends as a whole one."""
    plain, fast = (tiny_run(train__epochs=2, train__compile=mode) for mode in ("off", "default"))
    run(plain, tiny_shards, tmp_path / "plain")
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, "ltcore.training"):
        run(fast, tiny_shards, tmp_path / "fast")
    assert [r.getMessage()[:29] for r in caplog.records if r.name == "ltcore.training"] == [
        "compiling the training step: "
    ]
    losses = [
        [json.loads(line)["train/loss"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("plain", "fast")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert weights(tmp_path / "fast").keys() == weights(tmp_path / "plain").keys()
    monkeypatch.setattr(trainer, "DECIDE_EVERY", 2)
    with pytest.raises(trainer.StopRequested, match="in epoch 2 of 2"):
        run(fast, tiny_shards, tmp_path / "cut", StopAfter(4))
    torch._dynamo.reset()
    run(fast, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "fast", tmp_path / "cut")


@pytest.mark.slow
def test_generated_code_of_a_contrast_differs_by_rounding_alone(
    tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-11 in float64; in float32 PaCo's logits at 1/0.05 magnify what rounding changes within few steps."""
    config = tiny_run(**CASES["paco+lpa"]).to_dict()
    plain = plain_steps(config, tiny_shards, STEPS)
    torch._dynamo.reset()
    monkeypatch.setattr(runs, "parallel", lambda step, device: CompiledStep(step))
    torch.testing.assert_close(
        plain_steps(config, tiny_shards, STEPS)["losses"], plain["losses"], rtol=1e-11, atol=1e-11
    )


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "rounding"), [("sgd", 1e-11), ("adamw", 1e-5)])
def test_a_compiled_update_follows_the_rate_without_a_new_graph(optimizer: str, rounding: float) -> None:
    """Two graphs, around the break that torch puts into every optimizer, and one more once SGD has its momentum.

    Compiled, AdamW has 1 - 0.999^t from a count of steps in float32: at the first step it is off by 6e-8 of 0.001, its root by
    3e-5, and a step of 0.125 by 4e-6.
    """
    torch._dynamo.reset()
    counters.clear()
    cfg = OptimConfig(optimizer=optimizer, lr=0.125, momentum=0.9, weight_decay=5e-4, clip_norm=1.0)
    found = []
    for compiler in (None, partial(torch.compile, backend="aot_eager")):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).double()
        descent = Descent(cfg, net, compiler=compiler)
        for step in range(6):
            descent.set_lr(0.125 / 2**step)  # which float32, in which rates are held, has exactly
            descent.zero_grad()
            descent.backward(net(torch.randn(32, 8, dtype=torch.float64)).square().mean())
            assert descent.step()
        found.append([parameter.detach().clone() for parameter in net.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=rounding)
    assert 2 <= counters["stats"]["unique_graphs"] <= 3


def test_replays_compile_the_update_and_nothing_else_does() -> None:
    assert compiled.update_compiler("off") is compiled.update_compiler("default") is None
    update = compiled.update_compiler("reduce-overhead")
    assert (
        isinstance(update, partial) and update.func is torch.compile and update.keywords == {"mode": "reduce-overhead"}
    )


def test_off_calls_the_step_itself() -> None:
    step = torch.nn.Identity()
    assert compiled.compiled(step, "off", CPU) is step  # type: ignore[arg-type]


def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"reduce-overhead replays CUDA graphs, and this run computes on cpu"):
        compiled.compiled(torch.nn.Identity(), "reduce-overhead", CPU)  # type: ignore[arg-type]


def test_a_machine_without_a_compiler_is_told() -> None:
    absent = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with (
        absent,
        pytest.raises(ConfigError, match=r"train\.compile=default needs a C\+\+ compiler, and torch finds none"),
    ):
        compiled.compiled(torch.nn.Identity(), "default", CPU)  # type: ignore[arg-type]


def test_a_share_that_changes_every_step_is_refused() -> None:
    keys = {"objective.base": "bbn", "model.bilateral": True, "train.compile": "default"}
    with pytest.raises(ConfigError, match=r"train\.compile=default does not go with objective\.base=bbn"):
        RunConfig(name="bbn").replace(keys)


def test_graphs_that_are_replayed_do_not_accumulate() -> None:
    plain = RunConfig(name="ce").replace({"train.accumulate": 2, "train.compile": "default"})
    with pytest.raises(
        ConfigError, match=r"train\.compile=reduce-overhead does not go with train\.accumulate=2: the graph of"
    ):
        plain.replace({"train.compile": "reduce-overhead"})
    plain.replace({"train.compile": "reduce-overhead", "train.accumulate": 1})


def test_a_run_does_not_continue_compiled(tiny_shards: str, tmp_path: Path) -> None:
    """Its last digits would be others, as with another precision."""
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"train\.compile: 'off' there, 'default' now"):
        run(tiny_run(train__epochs=1, train__compile="default"), tiny_shards, tmp_path / "run")
