"""A second network beside the first (LFF): its start, and its place in checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import Components, build
from ltcore.training.context import LocalContext
from ltcore.training.cost import cost
from ltcore.training.init_from import start_from
from ltcore.training.rehearsal import checkpoint_bytes
from tests.training.runs import run, tiny_run, weights

CLASSES = ("ant", "bee", "cat", "dog")
LFF = {"objective.base": "lff"}


def parts_of(uri: str, **changes: object) -> tuple[RunConfig, Components]:
    cfg = tiny_run(**changes)
    loader = make_loader(cfg.data, uri, batch_size=cfg.train.batch_size, seed=cfg.seed)
    try:
        return cfg, build(cfg, loader, LocalContext(torch.device("cpu")))
    finally:
        loader.close()


def test_the_networks_begin_apart_and_the_first_as_ever(tiny_shards: str) -> None:
    (_, plain), (_, parts) = parts_of(tiny_shards), parts_of(tiny_shards, **LFF)
    assert plain.step.twin is None and parts.step.twin is not None
    first, second = parts.step.net.state_dict(), parts.step.twin.state_dict()
    for name, value in plain.step.net.state_dict().items():
        assert torch.equal(value, first[name]), name
        if name.endswith("weight") and value.ndim > 1:
            assert not torch.equal(value, second[name]), name


def test_both_are_trained_and_the_first_alone_is_saved_as_the_model(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(**LFF), tiny_shards, tmp_path / "run")
    _, parts = parts_of(tiny_shards, **LFF)
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert found is not None and found.model_state().keys() == parts.step.net.state_dict().keys()
    state = found.train_state()["step"]
    for name, value in parts.step.named_parameters():
        assert not torch.equal(state[name], value), name
    assert torch.equal(state["net.heads.0.weight"], weights(tmp_path / "run")["heads.0.weight"])


def test_it_takes_over_a_backbone_and_keeps_its_classifier(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "one")
    cfg, parts = parts_of(tiny_shards, **LFF, train__init_from=str(tmp_path / "one"))
    assert parts.step.twin is not None
    own = parts.step.twin.heads[0].weight.clone()
    start_from(cfg, parts, CLASSES)
    trained, second = weights(tmp_path / "one"), parts.step.twin.state_dict()
    assert torch.equal(second["backbone.trunk.conv1.weight"], trained["backbone.trunk.conv1.weight"])
    assert torch.equal(second["backbone.trunk.bn1.running_mean"], trained["backbone.trunk.bn1.running_mean"])
    assert torch.equal(second["heads.0.weight"], own) and not torch.equal(own, trained["heads.0.weight"])


def test_it_is_counted(tiny_shards: str) -> None:
    (plain, alone), (cfg, parts) = parts_of(tiny_shards), parts_of(tiny_shards, **LFF)
    loader = make_loader(cfg.data, tiny_shards, batch_size=8, seed=0)
    manifest = loader.store.manifest
    loader.close()
    assert "; 3 forwards per image" in cost(plain, manifest, 10)[0] and "; 6 forwards per" in cost(cfg, manifest, 10)[0]
    model = sum(t.numel() * t.element_size() for t in alone.step.net.state_dict().values())
    assert checkpoint_bytes(cfg, parts) - checkpoint_bytes(plain, alone) == 2 * 2 * model
