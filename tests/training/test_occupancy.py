"""What steps take of a device, as far as it can be told without one."""

from __future__ import annotations

import itertools
from contextlib import closing
from typing import Any

import pytest
import torch

from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CapacityError, GpuShareError
from ltcore.training import occupancy as occupancies
from ltcore.training import run as runs
from ltcore.training.build import build, stream_options
from ltcore.training.context import LocalContext
from ltcore.training.descent import build_descent
from ltcore.training.hardware import CONTEXT_BYTES, limit_memory, memory_fraction
from ltcore.training.occupancy import covered, described, footprint, heaviest, run_steps
from tests.training.runs import tiny_run

GIB = 2**30


def test_the_heaviest_run_is_the_one_with_most_images_weights_or_encoders(tiny_shards: str) -> None:
    manifest, base = read_manifest(tiny_shards), tiny_run()
    size = footprint(base, manifest)
    for changes in (
        {"train.batch_size": 2 * base.train.batch_size},
        {"train.ema_decay": 0.9},
        {"train.optim.optimizer": "adamw"},
        {"objective.terms.lpa.weight": 1.0},
    ):
        assert footprint(base.replace(changes), manifest) > size, changes
    assert footprint(base.replace({"train.optim.lr": 0.5}), manifest) == size
    assert footprint(base.replace({"train.grad_checkpointing": True}), manifest) < size
    large = base.replace({"train.batch_size": 2 * base.train.batch_size, "name": "large"})
    assert heaviest([base, large, base], manifest) == large
    assert described(base, base) == "the recipe"
    assert described(large, base) == f"the recipe with name=large, train.batch_size={large.train.batch_size}"


def test_the_measured_steps_are_steps_of_training(tiny_shards: str) -> None:
    cfg, ctx = tiny_run(), LocalContext(torch.device("cpu"))
    options = {"batch_size": cfg.train.batch_size, "seed": cfg.seed, **stream_options(cfg)}
    with closing(make_loader(cfg.data, tiny_shards, **options)) as loader:
        parts = build(cfg, loader, ctx)
        descent = build_descent(cfg.train, parts, ctx.device)
        before = [p.clone() for p in parts.step.net.parameters()]
        assert run_steps(cfg, parts, descent, list(itertools.islice(loader.train_batches(0), 2)), 3, ctx.device) > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, parts.step.net.parameters(), strict=True))
    assert descent.optimizer.state, "the optimizer's memory counts too"


def test_what_is_measured_is_put_together(tiny_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are real ones on the CPU; what only a GPU can say is said here."""
    said = {
        "reset_peak_memory_stats": None,
        "mem_get_info": (10 * GIB, 16 * GIB),
        "memory_reserved": 5 * GIB,
        "max_memory_reserved": 7 * GIB,
        "get_device_name": "T4",
    }
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(occupancies, "LocalContext", lambda: LocalContext(torch.device("cpu")))
    for kernels_s, busy in ((0.0, None), (1e9, 1.0)):
        monkeypatch.setattr(occupancies, "_kernel_seconds", lambda *_, value=kernels_s: value)
        found = occupancies.occupancy(tiny_run(), tiny_shards, name="it", cpus=8, gpus=2)
        assert (found.device, found.run, found.cpus, found.gpus, found.busy) == ("T4", "it", 8, 2, busy)
        assert (found.peak_bytes, found.device_bytes) == (8 * GIB, 16 * GIB), "1 GiB is beside what torch reserved"


def test_time_in_which_two_kernels_ran_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 1.6), (3, 4)]) == 5


def test_a_part_of_a_gpu_is_a_part_of_its_memory_less_what_cuda_takes() -> None:
    assert memory_fraction(0.25, 16 * GIB) == 0.25 - CONTEXT_BYTES / (16 * GIB)
    assert memory_fraction(0.02, 16 * GIB) == 0.01
    assert memory_fraction(1.0, 16 * GIB) == memory_fraction(2.0, 16 * GIB) == 1.0


def test_the_limit_is_set_on_a_gpu_alone_and_lifted_for_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        total_memory = 16 * GIB

    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Device())

    def limit(fraction: float, device: int) -> None:
        assert device == 3, "torch takes no device without a number here"
        limits.append(fraction)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    limit_memory(torch.device("cpu"), 0.5)
    limit_memory(torch.device("cuda"), 0.0)
    assert limits == []
    limit_memory(torch.device("cuda"), 0.5)
    limit_memory(torch.device("cuda"), 1.0)
    assert limits == [0.5 - 1 / 32, 1.0]


@pytest.mark.parametrize(
    ("gpus", "kind", "words"), [(0.25, GpuShareError, "--gpus-per-worker 1"), (1.0, CapacityError, "batch")]
)
def test_a_full_memory_names_the_part_and_what_to_do(gpus: float, kind: type[CapacityError], words: str) -> None:
    class Log:
        fields: dict[str, Any] = {}

        def update(self, **fields: Any) -> None:
            self.fields.update(fields)

    log: Any = Log()
    full = (torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"))
    for error in full:
        log.fields.clear()
        with pytest.raises(kind, match=words) as caught, runs._record_end(log, torch.device("cuda:0"), gpus):
            raise error
    assert type(caught.value) is kind and caught.value.retryable
    assert log.fields["status"] == "failed" and log.fields["reason"] == str(caught.value)
    assert log.fields["short_of_gpu"] == (gpus if gpus < 1 else None)
