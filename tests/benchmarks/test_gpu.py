"""The benchmark of the step on the device; nothing here looks at how fast it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.benchmarks import datasets as images
from ltcore.benchmarks import gpu
from ltcore.benchmarks.baselines import timm_step
from ltcore.benchmarks.harness import Section
from ltcore.benchmarks.options import Options
from ltcore.benchmarks.run import bench
from ltcore.errors import CapacityError, ConfigError
from ltcore.training.hardware import Precision
from tests.benchmarks.documents import check_document


def test_bytes_are_those_of_what_is_read_and_written() -> None:
    a, b = torch.zeros(10, 10), torch.zeros(10, 10)
    with gpu.Traffic() as traffic:
        _ = a.t() + b
    assert traffic.bytes == 3 * 400


def test_parts_are_between_marks() -> None:
    clock = gpu.Clock(torch.device("cpu"))
    for _ in range(3):
        clock.mark()
    assert len(clock.milliseconds()) == 2
    assert min(clock.milliseconds()) >= 0


def test_the_step_on_this_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "bench.json"
    document = bench(Options(what="gpu", quick=True, output=str(output)))
    check_document(document, output)
    assert all(
        section["notes"][0].startswith("numbers of the CPU, since there is no GPU") for section in document["sections"]
    )
    names = ["gpu: speed", "gpu: parts of a step", "gpu: memory traffic", "gpu: images"]
    assert [section["title"] for section in document["sections"]] == names * len(gpu.precisions(torch.device("cpu")))
    speed, split, traffic, fed = (
        {"rungs": [rung for section in document["sections"] if section["title"] == name for rung in section["rungs"]]}
        for name in names
    )
    labels = [f"resnet8 16 px {precision}" for precision in gpu.precisions(torch.device("cpu"))]
    assert [(rung["name"], rung["peer"]) for rung in speed["rungs"]] == [(label, f"bare: {label}") for label in labels]
    for label in labels:
        shares = [rung["ratio"] for rung in split["rungs"] if rung["name"].startswith(f"{label}: ")]
        assert len(shares) == len(gpu.PARTS)
        assert sum(shares) == pytest.approx(1)
    assert [rung["peer"] for rung in traffic["rungs"]] == [f"{label}: step" for label in labels]
    assert all(rung["ratio"] > 0 for rung in traffic["rungs"])
    assert [(rung["name"], rung["peer"]) for rung in fed["rungs"]] == [
        (f"{label}: resident", f"{label}: from the host") for label in labels
    ]


def test_what_fails_is_said_and_the_next_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "precisions", lambda place: ["fp32", "bf16"])
    made = gpu.Step

    def step(net: gpu.Net, precision: str, *more: Any) -> gpu.Step:
        if precision == "fp32":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(net, precision, *more)

    def no_room(*_: Any, **__: Any) -> None:
        raise CapacityError("the images take more than is free")

    monkeypatch.setattr(gpu, "Step", step)
    document = bench(Options(what="gpu", quick=True, output=str(tmp_path / "bench.json")))
    failed, *measured = document["sections"]
    assert failed["notes"][1] == "resnet8 16 px fp32: OutOfMemoryError: CUDA out of memory" and len(measured) == 4
    monkeypatch.setattr(gpu, "Step", made)
    monkeypatch.setattr(gpu, "precisions", lambda place: ["fp32"])
    monkeypatch.setattr(gpu, "measure_resident", no_room)  # the last of its parts
    document = bench(Options(what="gpu", quick=True, output=str(tmp_path / "bench.json")))
    titles = [section["title"] for section in document["sections"]]
    assert titles == ["gpu: speed", "gpu: parts of a step", "gpu: memory traffic", "gpu: not measured"]
    assert document["sections"][0]["notes"][1].startswith("bare: plain PyTorch")
    monkeypatch.setattr(gpu, "precisions", lambda place: ["fp32", "bf16"])
    with pytest.raises(
        ConfigError, match=r"--only int8: expected a part of one of 'resnet8 16 px fp32', 'resnet8 16 px bf16'"
    ):
        list(gpu.gpu(Options(what="gpu", quick=True, only="int8")))


@pytest.mark.slow
def test_a_compiled_step_is_fed_from_the_device_too() -> None:
    section = Section("images", "images/s")
    ours = gpu.Step(gpu.Net("resnet8", 16, 8), "fp32", images.shards(None, quick=True), torch.device("cpu"))
    aim = gpu.Aim(">=", 1, on="median")
    options: dict[str, Any] = {"steps": 1, "turns": 1, "compiled": "default", "aim": aim}
    gpu.measure_resident(section, "x", ours.cfg, 16, ours.place, **options)
    ours.close()
    assert [(rung.name, rung.aim) for rung in section.rungs] == [
        ("x: resident", None),
        ("x: resident, compiled (default)", aim),
    ]
    assert section.median("x: resident, compiled (default)") > 0


def test_a_gpu_is_measured_in_fp16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card without bf16, for which it is meant, and the one with it; a CPU never."""
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert gpu.precisions(torch.device("cuda")) == ["fp32", *["bf16"] * native, "fp16"]
    assert "fp16" not in gpu.precisions(torch.device("cpu"))


@pytest.mark.slow
def test_every_step_in_fp16_scales_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on the CPU, where a run refuses it: a scale that overflows leaves the step out."""
    half = Precision(torch.float16, "fp16 with a loss scaler (configured)")
    monkeypatch.setattr("ltcore.training.build.choose_precision", lambda wish, place: half)
    step = gpu.Step(gpu.Net("resnet8", 16, 8), "fp16", images.shards(None, quick=True), torch.device("cpu"))
    bare = step.bare()
    taken: dict[str, list[bool]] = {}
    ours = step.descent._scaler
    assert ours is not None
    for name, scaler, net, call in (
        ("ours", ours, step.parts.step.net, step.train),
        ("marked", ours, step.parts.step.net, step.marked),
        ("bare", bare.scaler, bare.net, lambda: bare.step(step._on_device.images_VBCHW[0], step.raw.labels_B)),
    ):
        call()  # which makes the scale that is set below
        for scale in (2.0**10, 2.0**40):
            before = [parameter.clone() for parameter in net.parameters()]
            scaler.update(scale)
            call()
            moved = any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
            taken.setdefault(name, []).append(moved)
    step.close()
    assert taken == {name: [True, False] for name in ("ours", "marked", "bare")}


def test_timms_step_trains_its_network() -> None:
    pytest.importorskip("timm")
    images, labels_B = torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    torch.manual_seed(0)
    step = timm_step("test_vit", 4, images, labels_B, None)
    losses = [float(step()) for _ in range(3)]  # of one batch: they change with the weights alone
    assert len(set(losses)) == 3 and all(0 < loss < 10 for loss in losses)


@pytest.mark.parametrize("benchmark", [False, True])
def test_timms_step_has_the_switches_of_ours(monkeypatch: pytest.MonkeyPatch, benchmark: bool) -> None:
    pytest.importorskip("timm")
    seen = []

    def loss_of(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32))
        return logits_BC.sum()

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", lambda _, *args: loss_of(*args))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", benchmark)
    timm_step("test_vit", 4, torch.rand(4, 3, 160, 160), torch.arange(4), None)()
    assert seen == [(benchmark, benchmark)]


def test_on_a_gpu_networks_of_timm_are_beside_timm_itself_and_the_small_one_has_an_aim() -> None:
    small, *large = gpu.networks(torch.device("cuda"), quick=False)
    assert (small.name, small.aim_images_per_s, small.of_timm) == ("resnet32", 50_000, "")
    assert [net.of_timm for net in large] == ["resnet50", "vit_base_patch16_224"]


def test_the_step_of_a_network_of_timm_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    net = gpu.Net("timm:test_vit", 160, 4, "test_vit")
    step = gpu.Step(net, "fp32", images.shards(None, quick=True), torch.device("cpu"))
    section = Section("speed", "images/s")
    gpu.measure_rate(section, "vit", step, Options(what="gpu", quick=True, output=str(tmp_path / "bench.json")))
    step.close()
    assert [(rung.name, rung.peer, str(rung.aim)) for rung in section.rungs] == [
        ("vit", "bare: vit", "None"),
        ("vit", "timm: vit", ">= 0.95"),
    ]
    assert all(section.values(side) for side in ("vit", "bare: vit", "timm: vit"))
