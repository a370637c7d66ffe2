"""Runs whose decoded images stay on the device give the results of the others, to the bit; here the device is the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltcore.config.load import load_run
from ltcore.data.loading import resident
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CapacityError, ConfigError
from ltcore.training import trainer
from ltcore.training.context import StopRequested
from ltcore.training.cost import cost
from ltcore.training.rehearsal import rehearse
from tests.ddp import run_ranks
from tests.training.runs import (
    TERMS,
    StopAfter,
    assert_equal_runs,
    assert_equal_weights,
    plain_steps,
    run,
    stage2_run,
    tiny_run,
)

ON = {"data.loader": "cache", "data.resident": "on"}
ORIGINAL = {"augment__view1": "rrc_flip", "augment__crop_from": "original"}
KINDS: dict[str, dict[str, Any]] = {
    "one-view": {},
    "two-views": TERMS,
    "mixed": {"augment.mixup_alpha": 1.0, "augment.cutmix_alpha": 1.0, "train.sampling": "square_root"},
    "pairs": {"objective.base": "bbn", "model.bilateral": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_and_its_evaluation_are_those_of_the_host(tiny_shards: str, tmp_path: Path, kind: str) -> None:
    cfg = tiny_run(train__epochs=2).replace(KINDS[kind])
    host = run(cfg.replace({"data.loader": "cache"}), tiny_shards, tmp_path / "host")
    here = run(cfg.replace(ON), tiny_shards, tmp_path / "here")
    assert_equal_runs(tmp_path / "host", tmp_path / "here")
    assert {"val/top1", "val/balanced_accuracy"} <= here["last"].keys()
    assert here["test"] == host["test"] and here["test_best"] == host["test_best"]
    assert "canvases of train and val stay on cpu" in here["data"]["loader_reason"]
    assert host["data"]["loader_reason"] == "asked for"


@pytest.mark.parametrize("kind", ["two-views", "mixed"])
def test_a_stopped_run_goes_on_within_the_epoch_with_either(
    tiny_shards: str, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "DECIDE_EVERY", 3)
    cfg = tiny_run(train__epochs=2).replace(KINDS[kind])
    run(cfg, tiny_shards, tmp_path / "whole")
    for first, second in ((ON, ON), (ON, {})):
        cut = tmp_path / f"cut{len(second)}"
        with pytest.raises(StopRequested, match="in epoch 2 of 2"):
            run(cfg.replace(first), tiny_shards, cut, StopAfter(2))
        run(cfg.replace(second), tiny_shards, cut)
        assert_equal_runs(tmp_path / "whole", cut)


def some_steps(uri: str, kind: str, mode: dict[str, Any]) -> dict[str, Any]:
    cfg = tiny_run(model__ghost_batch=4).replace({**KINDS[kind], **mode})
    return plain_steps(cfg.to_dict(), uri, 7, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_compute_what_they_compute_from_the_host(tiny_shards: str, kind: str) -> None:
    host, here = (run_ranks(some_steps, 2, tiny_shards, kind, mode) for mode in ({}, ON))
    for first, second in zip(host, here, strict=True):
        assert torch.equal(first["losses"], second["losses"])
        for section in ("gradients", "state", "memories"):
            assert first[section].keys() == second[section].keys()
            assert all(torch.equal(value, second[section][name]) for name, value in first[section].items())


def test_stage_2_has_its_own_say(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1).replace(ON), tiny_shards, tmp_path / "first")
    for name, keys in (("host", {}), ("here", ON)):
        done = run(stage2_run(tmp_path / "first", "crt").replace(keys), tiny_shards, tmp_path / name)
        assert ("stay on cpu" in done["data"]["loader_reason"]) == (name == "here")
    assert_equal_weights(tmp_path / "host", tmp_path / "here")


def test_memory_is_counted_in_a_dry_run(tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(tiny_shards)

    def held(**keys: Any) -> str:
        return cost(tiny_run(**keys), manifest, 100)[2]

    size = f"train and val, {58 * 3 * 160**2 / 2**20:.1f} MiB, stay on"
    asked = {"data__image_size": 160, "data__loader": "cache", "augment__crop_from": "canvas"}
    assert held(**asked, data__resident="on").endswith(
        f"(data.loader=cache); those of {size} the device of each worker (data.resident=on). 1 view of each image."
    )
    assert f"; {size} a worker's GPU if a quarter of its free memory holds them (data.resident=auto)" in held(**asked)
    for keys in ({"data__resident": "off"}, {"data__loader": "threads"}, ORIGINAL):
        assert "stay on" not in held(**{**asked, **keys})
    said = rehearse(tiny_run().replace(ON), tiny_shards, str(tmp_path))[0]
    assert "; canvases of train and val stay on cpu, 0.0 MiB of" in said
    assert "stay on" not in rehearse(tiny_run(), tiny_shards, str(tmp_path))[0]
    with pytest.raises(ConfigError, match=r"augment\.crop_from=canvas or data\.resident=off"):
        rehearse(tiny_run(**ORIGINAL).replace(ON), tiny_shards, str(tmp_path))
    monkeypatch.setattr(resident, "free_bytes", lambda device: 1000)
    with pytest.raises(CapacityError, match=r"data\.resident=on needs 0\.0 MiB on cpu .* 0\.0 MiB are free there"):
        rehearse(tiny_run().replace(ON), tiny_shards, str(tmp_path))


@pytest.mark.parametrize(("word", "read"), [("auto", "auto"), ("on", "on"), ("off", "off"), ("'on'", "on")])
def test_the_key_is_read_as_it_is_spelled(tmp_path: Path, word: str, read: str) -> None:
    """YAML takes on and off without quotes for true and false."""
    file = tmp_path / "run.yaml"
    file.write_text(f"name: x\ndata:\n  resident: {word}\n")
    assert load_run(str(file)).data.resident == read
    file.write_text(load_run(str(file)).to_yaml())
    assert load_run(str(file)).data.resident == read
