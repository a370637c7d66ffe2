"""Small runs that the tests of the loop share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ltcore import dist
from ltcore.config.records import Notice
from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.models.norm import average_running_stats_
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import Components, build, parallel, stream_options
from ltcore.training.context import LocalContext, RunContext
from ltcore.training.copies import plan_epoch
from ltcore.training.optim import build_optimizer
from ltcore.training.record import RunInfo
from ltcore.training.run import Job, execute

TERMS = {
    "objective.terms.lpa.weight": 0.1,
    "objective.terms.lpa.start": 0.0,
    "objective.terms.lpa.num_attributes": 4,
    "objective.terms.lpa.queue_size": 16,
    "objective.terms.lpa.neighbors": 2,
    "objective.terms.lpa.threshold": 0.0,
    "objective.terms.lpa.embedding": "query",
    "objective.terms.dro.weight": 0.5,
    "objective.terms.dro.start": 0.0,
    "objective.terms.ifl.num_envs": 2,
    "objective.terms.ifl.start": 0.0,
    "objective.terms.ifl.milestones": "0.2",
}
"""All three terms, acting as soon as their memories are published, with neighbors by chance and a projection."""


WholeRun = Callable[..., Path]
"""(configuration, under="") -> the directory of its run: see the fixture ``whole_run``."""


def tiny_run(**changes: Any) -> RunConfig:
    """ResNet-8 on the 46 images of ``tiny_shards``, batch 8, no tracking; dots in keys are written as double underscores."""
    base = RunConfig(name="tiny").replace(
        {
            "model.name": "resnet8",
            "train.epochs": 3,
            "train.batch_size": 8,
            "train.precision": "fp32",
            "train.threads": 1,
            "train.optim.lr": 0.05,
            "tracking.wandb": False,
            "tracking.tensorboard": False,
            "augment.view1": "crop",
            "augment.view2": "sim_noflip",
        },
    )
    return base.replace({key.replace("__", "."): value for key, value in changes.items()})


def stage2_run(from_run: Path | str, method: str, **changes: Any) -> RunConfig:
    """Only what belongs to stage 2 is said; the rest comes from the run. No tracking, one thread; keys as for ``tiny_run``."""
    own = {"tracking.wandb": False, "tracking.tensorboard": False, "train.threads": 1, "train.precision": "fp32"}
    own |= {"stage2.from_run": str(from_run), "stage2.method": method}
    return RunConfig(name=method).replace(own | {key.replace("__", "."): value for key, value in changes.items()})


def run(cfg: RunConfig, uri: str, run_dir: Path, ctx: RunContext | None = None, **info: Any) -> dict[str, Any]:
    """Executes the run in this process; returns the content of run.json."""
    job = Job(config=cfg.to_dict(), data_uri=uri, run_uri=str(run_dir), info=RunInfo(**{"id": cfg.name, **info}))
    return execute(job, ctx or LocalContext(torch.device("cpu"))).to_json()


class Rank(LocalContext):
    """This process as one rank of the initialized group."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.rank, self.world = dist.rank(), dist.world()


def plain_steps(cfg_tree: dict[str, Any], uri: str, steps: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """``steps`` training steps in one precision on however many ranks there are.

    Returns the loss of the global batch per step, gradients of the last step, parameters, BN buffers, and published memories.
    """

    cfg = RunConfig.from_dict(cfg_tree)
    ctx = Rank()
    options = {"batch_size": cfg.train.batch_size, "seed": cfg.seed, "rank": ctx.rank, "world": ctx.world}
    loader = make_loader(cfg.data, uri, **options, **stream_options(cfg))
    parts = _as(dtype, build(cfg, loader, ctx))
    optimizer = build_optimizer(cfg.train.optim, parts.step)
    objective, losses, done, epoch = parts.step.objective, [], 0, 0
    while done < steps:
        plan_epoch(cfg, loader, objective, epoch, ctx.device)
        for raw in loader.train_batches(epoch):
            progress = done / steps
            batch = parts.augment(raw, epoch)
            batch = batch.with_images(batch.images_VBCHW.to(dtype))
            if parts.step.key is not None:
                parts.step.key.update(parts.step.net)
            optimizer.zero_grad()
            loss, _, out = parts.wrapped(batch, progress)
            loss.backward()
            gradients = {name: p.grad.clone() for name, p in parts.step.named_parameters() if p.grad is not None}
            optimizer.step()
            objective.observe(out, batch, progress)
            losses.append(dist.all_reduce_sum_(loss.detach().clone()) / dist.world())
            done += 1
            if done == steps:
                break
        objective.merge(done / steps)
        epoch += 1
    average_running_stats_(parts.step)
    loader.close()
    published = {
        f"{name}/{key}": value.clone()
        for name, memory in objective.memories().items()
        for key, value in memory.published().items()
    }
    return {
        "losses": torch.stack(losses),
        "gradients": gradients,
        "state": {name: value.clone() for name, value in parts.step.state_dict().items()},
        "memories": published,
    }


def _as(dtype: torch.dtype, parts: Components) -> Components:
    """One precision throughout; wrapped anew, because DDP laid out its gradient buckets for float32."""
    parts.step.to(dtype)
    if parts.step.key is not None:
        parts.step.key.net.to(dtype)
    parts.wrapped = parallel(parts.step, torch.device("cpu"))
    return parts


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    found = ckpt.find(run_dir / "checkpoints")
    assert found is not None
    return found.model_state()


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_equal_runs(a: Path, b: Path) -> None:
    assert_equal_weights(a, b)
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if not k.endswith(("_s", "_fraction", "_bytes"))}
            for line in (d / "metrics.jsonl").open()
        ]
        for d in (a, b)
    ]
    assert timeless[0] == timeless[1]


class StopAfter(LocalContext):
    """Asks to stop after a number of questions."""

    def __init__(self, questions: int) -> None:
        super().__init__(torch.device("cpu"))
        self._left = questions

    def stop_requested(self) -> bool:
        self._left -= 1
        return self._left < 0


class Told(Rank):
    """Hears a notice at a question; only rank 0 knows when to ask."""

    def __init__(self, question: int, what: Notice = "preemption") -> None:
        super().__init__()
        self._left, self._what = question, what

    def notice_due(self) -> bool:
        self._left -= 1
        return self.rank == 0 and self._left < 0

    def notice(self) -> Notice | None:
        return self._what
