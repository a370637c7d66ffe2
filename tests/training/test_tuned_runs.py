"""Runs that train a part of a backbone: repeatable, resumable, and complete only together with their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CheckpointError, ConfigError
from ltcore.models.lora import Lora
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.tune import TUNES
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import build
from ltcore.training.context import LocalContext, StopRequested
from ltcore.training.cost import cost, trained_note
from ltcore.training.export import ExportedNet, export
from ltcore.training.predict import evaluate, load
from ltcore.training.rehearsal import checkpoint_bytes
from tests.ddp import run_ranks
from tests.training.runs import TERMS, Rank, StopAfter, Told, assert_equal_runs, run, stage2_run, tiny_run, weights

RESNET8 = [tune for tune in TUNES if tune != "adaptformer"] + ["partial:1"]


def tuned(tune: str, **changes: Any) -> RunConfig:
    return tiny_run(model__tune=tune, **changes)


def base_file(folder: Path, seed: int) -> str:
    """Weights of a ResNet-8 under torchvision's names, with statistics of their own."""
    net = LongTailNet(ModelConfig(name="resnet8"), 4, frozenset(), seed).train()
    net(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    state = {
        name.removeprefix("trunk.").removeprefix("branches.0."): value
        for name, value in net.backbone.state_dict().items()
    }
    torch.save(state, folder / f"base{seed}.pth")
    return str(folder / f"base{seed}.pth")


def sizes(run_dir: Path) -> dict[str, int]:
    found = ckpt.find(run_dir / "checkpoints")
    assert found is not None
    return {file.name: file.stat().st_size for file in found.path.iterdir()}


def pictures(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tune", RESNET8)
def test_a_run_and_its_record(tiny_shards: str, tmp_path: Path, tune: str) -> None:
    """What is evaluated from the checkpoint is what the run evaluated; the record counts what was trained."""
    cfg = tuned(tune)
    record = run(cfg, tiny_shards, tmp_path / "run")
    net = LongTailNet(cfg.model, 4, frozenset(), cfg.seed)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert record["trained_parameters"] == trained and record["parameters"] == sum(p.numel() for p in net.parameters())
    found = ckpt.find(tmp_path / "run" / "checkpoints", "last")
    assert found is not None and ("base" in found.meta) == (tune != "full")
    assert found.model_state().keys() == net.state_dict().keys() - net.frozen
    predictor = load(found.path)
    metrics = evaluate(predictor, tiny_shards, ["test"], [])["splits"]["test"]
    assert metrics["top1"] == record["test"]["test"]["top1"]
    assert predictor.predict_proba([]).shape == (0, 4)
    for name in net.frozen:
        assert torch.equal(predictor.net.state_dict()[name], net.state_dict()[name]), name


@pytest.mark.parametrize(
    "terms",
    [{}, {**TERMS, "train.ema_decay": 0.5}, {"objective.base": "lff"}],
    ids=["base", "all-terms", "twin"],
)
@pytest.mark.parametrize("tune", ["head", "norm", "lora", "partial:1"])
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tiny_shards: str, tmp_path: Path, tune: str, terms: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltcore.training.trainer.DECIDE_EVERY", 3)
    cfg = tuned(tune, model__weights=base_file(tmp_path, 5), **terms)
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(2))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    states = [ckpt.find(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    whole, cut = (found.train_state()["step"] for found in states if found is not None)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items() if isinstance(value, Tensor))


def on_a_rank(tree: dict[str, Any], uri: str, folder: str) -> None:
    with pytest.raises(StopRequested):
        run(RunConfig.from_dict(tree), uri, Path(folder), Told(1))
    run(RunConfig.from_dict(tree), uri, Path(folder), Rank())


@pytest.mark.parametrize("tune", ["lora", "norm"])
def test_a_run_of_two_ranks_is_told_to_leave_and_ends_on_one(tiny_shards: str, tmp_path: Path, tune: str) -> None:
    """What two ranks saved is resumed by two; the result is that of a run of two that was not told."""
    cfg = tuned(tune, model__ghost_batch=4, train__optim__lr=0.001, **TERMS)
    run_ranks(on_a_rank, 2, cfg.to_dict(), tiny_shards, str(tmp_path / "cut"))
    run_ranks(whole_on_a_rank, 2, cfg.to_dict(), tiny_shards, str(tmp_path / "whole"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def whole_on_a_rank(tree: dict[str, Any], uri: str, folder: str) -> None:
    run(RunConfig.from_dict(tree), uri, Path(folder), Rank())


def test_checkpoints_hold_what_was_trained(tiny_shards: str, tmp_path: Path) -> None:
    for tune in ("full", "lora", "head"):
        run(tuned(tune, model__name="resnet32", train__epochs=1, train__optim__lr=1e-6), tiny_shards, tmp_path / tune)
    full, lora, head = (sizes(tmp_path / tune) for tune in ("full", "lora", "head"))
    assert lora["model.pt"] < 0.4 * full["model.pt"] and lora["state.pt"] < 0.4 * full["state.pt"]
    assert head["model.pt"] < 0.05 * full["model.pt"]


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_room_for_checkpoints_is_room_for_what_was_trained(tiny_shards: str, tmp_path: Path, tune: str) -> None:
    cfg = tuned(tune, train__epochs=1)
    run(cfg, tiny_shards, tmp_path / "run")
    loader = make_loader(cfg.data, tiny_shards, batch_size=8, seed=0)
    said = checkpoint_bytes(cfg, build(cfg, loader, LocalContext(torch.device("cpu"))))
    loader.close()
    last = sizes(tmp_path / "run")
    assert said == pytest.approx(3 * last["model.pt"] + 2 * last["state.pt"], rel=0.3)


def test_another_base_is_refused(tiny_shards: str, tmp_path: Path) -> None:
    """In one sentence, by everything that puts the parts together, and not when the weights are back."""
    file = Path(base_file(tmp_path, 5))
    cfg = tuned("lora", model__weights=str(file))
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "run", StopAfter(1))
    good = file.read_bytes()
    expected = load(tmp_path / "run").logits(pictures())
    file.write_bytes(Path(base_file(tmp_path, 6)).read_bytes())
    message = r"holds only what model\.tune=lora trained .*base5\.pth gives another one here: bring back the weights"
    with pytest.raises(CheckpointError, match=r"base5\.pth"):
        run(cfg, tiny_shards, tmp_path / "run")
    for use in (
        lambda: load(tmp_path / "run"),
        lambda: run(tiny_run(train__init_from=str(tmp_path / "run")), tiny_shards, tmp_path / "next"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            use()
        assert str(caught.value).count(". ") == 0
    file.unlink()
    with pytest.raises(Exception, match="base5"):
        load(tmp_path / "run")
    file.write_bytes(good)
    assert torch.equal(load(tmp_path / "run").logits(pictures()), expected)
    assert run(cfg, tiny_shards, tmp_path / "run")["status"] == "finished"


def test_a_base_of_another_seed_is_refused(tiny_shards: str, tmp_path: Path) -> None:
    run(tuned("head", train__epochs=1), tiny_shards, tmp_path / "run")
    found = ckpt.read(tmp_path / "run")
    meta = {**found.meta, "config": {**found.meta["config"], "seed": 1}}
    (found.path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"but seed=1 with model\.weights=None gives another one here"):
        load(found.path)
    (found.path / "meta.json").write_text(json.dumps({**meta, "base": 7}))
    with pytest.raises(CheckpointError, match=r"base is 7, expected a hash"):
        load(found.path)


def test_a_base_from_a_file_of_halves_is_found_again(tiny_shards: str, tmp_path: Path) -> None:
    file = base_file(tmp_path, 5)
    state = torch.load(file, weights_only=True)
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, file)
    run(tuned("head", train__epochs=1, model__weights=file), tiny_shards, tmp_path / "run")
    assert load(tmp_path / "run").net.backbone.trunk.conv1.weight.dtype == torch.float32


def test_the_best_weights_are_tested_with_their_base(tiny_shards: str, tmp_path: Path) -> None:
    """Also where the averaged network is evaluated: last and best as from their checkpoints."""
    cfg = tuned("partial:1", model__weights=base_file(tmp_path, 5), train__ema_decay=0.3, train__optim__lr=0.2)
    record = run(cfg, tiny_shards, tmp_path / "run")
    for tag, field in (("last", "test"), ("best", "test_best")):
        found = ckpt.find(tmp_path / "run" / "checkpoints", tag)
        assert found is not None
        metrics = evaluate(load(found.path), tiny_shards, ["test"], [])["splits"]["test"]
        assert metrics["top1"] == record[field]["test"]["top1"]


def test_exported_layers_are_plain(tiny_shards: str, tmp_path: Path) -> None:
    run(tuned("lora", train__optim__lr=0.2), tiny_shards, tmp_path / "run")
    predictor = load(tmp_path / "run")
    assert any(isinstance(module, Lora) for module in predictor.net.modules())
    merged = ExportedNet(predictor)
    assert not any(isinstance(module, Lora) for module in merged.modules())
    assert {type(m) for m in merged.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert any(isinstance(module, Lora) for module in predictor.net.modules()), "the predictor itself stays as it is"
    with torch.no_grad():
        torch.testing.assert_close(merged(pictures()), predictor.logits(pictures()), rtol=1e-4, atol=1e-4)
    assert export(predictor, str(tmp_path / "net.pt2"), pictures()) < 1e-4
    program = torch.export.load(tmp_path / "net.pt2")
    assert not [name for name in program.state_dict if "lora" in name]


def test_the_next_run_starts_from_merged_weights(tiny_shards: str, tmp_path: Path) -> None:
    """``init_from`` a LoRA run: the same function, whatever is trained now, and whole checkpoints."""
    run(tuned("lora", train__optim__lr=0.2), tiny_shards, tmp_path / "first")
    expected = load(tmp_path / "first").logits(pictures())
    for tune in ("full", "lora", "head"):
        # a rate that changes nothing
        cfg = tuned(tune, train__init_from=str(tmp_path / "first"), train__epochs=1, train__optim__lr=1e-30)
        run(cfg, tiny_shards, tmp_path / tune)
        found = ckpt.read(tmp_path / tune)
        net = LongTailNet(cfg.model, 4, frozenset(), cfg.seed)
        assert "base" not in found.meta and found.model_state().keys() == net.state_dict().keys()
        if tune != "full":  # there statistics of batch norms move
            torch.testing.assert_close(load(found.path).logits(pictures()), expected, rtol=1e-4, atol=1e-4)
        run(cfg.replace({"name": "again"}), tiny_shards, tmp_path / tune)  # finished: the stored result


def test_stage_2_of_a_tuned_run(tiny_shards: str, tmp_path: Path) -> None:
    run(tuned("lora"), tiny_shards, tmp_path / "first")
    record = run(stage2_run(tmp_path / "first", "crt", data__uri=tiny_shards), tiny_shards, tmp_path / "second")
    assert record["status"] == "finished" and record["config"]["model.tune"] == "lora"
    assert record["trained_parameters"] == 4 * 64 + 4, "the new classifier alone"
    first, second = load(tmp_path / "first").net.state_dict(), load(tmp_path / "second").net.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]) != name.startswith("heads."), name
    assert weights(tmp_path / "second").keys() == second.keys()


def test_a_frozen_classifier_over_a_frozen_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze=classifier does not go with model\.tune=head"):
        tuned("head", train__freeze="classifier", train__init_from="/run")
    tuned("bias", train__freeze="classifier", train__init_from="/run")


def test_counts_are_told(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    assert trained_note(tuned("full"), manifest) == ""
    assert (
        trained_note(tuned("head"), manifest) == "resnet8 with model.tune=head trains 260 of 74,900 parameters (0.35%)"
    )
    (full, full_bytes, _), (head, head_bytes, _) = (cost(tuned(tune), manifest, 10) for tune in ("full", "head"))
    assert "trains" not in full and "model.tune=head trains 260 of 74,900 parameters (0.35%)" in head
    assert full_bytes != head_bytes


def test_a_base_that_has_moved_is_found_in_the_folder_that_is_named(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compared, as ever: a file of the same name with other weights is refused."""
    file, elsewhere = Path(base_file(tmp_path, 5)), tmp_path / "elsewhere"
    run(tuned("lora", train__epochs=1, model__weights=str(file)), tiny_shards, tmp_path / "run")
    before = load(tmp_path / "run").net(pictures().float()).mean_logits_BC
    elsewhere.mkdir()
    file.rename(elsewhere / file.name)
    with pytest.raises(
        CheckpointError, match=r"base5.pth does not exist. Put the file there, or .* LTCORE_WEIGHTS_DIR"
    ):
        load(tmp_path / "run")
    monkeypatch.setenv("LTCORE_WEIGHTS_DIR", str(elsewhere))
    assert torch.equal(load(tmp_path / "run").net(pictures().float()).mean_logits_BC, before)
    Path(base_file(tmp_path, 6)).rename(elsewhere / file.name)
    with pytest.raises(CheckpointError, match="base5"):
        load(tmp_path / "run")
