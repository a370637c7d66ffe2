"""Runs that start from the weights of another one, and DRO-LT's stages made of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision

from ltcore.config.load import load_run
from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.data.shards.manifest import read_manifest, write_manifest
from ltcore.errors import CheckpointError, ConfigError, DataError
from ltcore.models.ema import EmaCopy
from ltcore.stats import ClassStats
from ltcore.training import checkpoint as ckpt
from ltcore.training.build import Components, build, build_modules
from ltcore.training.context import StopRequested
from ltcore.training.evaluate import Evaluator
from ltcore.training.init_from import start_centroids, start_from
from ltcore.training.same_start import origin_of
from ltcore.training.stage2.features import pooled_features
from ltcore.training.step import TrainStep
from tests.ddp import run_ranks
from tests.training.runs import TERMS, Rank, StopAfter, assert_equal_runs, run, tiny_run, weights


@pytest.fixture(scope="module")
def first(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    run(tiny_run(train__epochs=1), tiny_shards, run_dir)
    return run_dir


def still(**changes: object) -> RunConfig:
    """One epoch in which the weights hardly move."""
    return tiny_run(train__epochs=1, train__optim__lr=1e-12, train__optim__weight_decay=0.0, **changes)


def test_the_weights_are_those_of_the_checkpoint(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    record = run(still(train__init_from=str(first), seed=5), tiny_shards, tmp_path / "run")
    best = ckpt.read(first)
    assert best.path.name.startswith("best-")
    for name, value in weights(tmp_path / "run").items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, best.model_state()[name], rtol=0, atol=1e-6)
    started_from = record["started_from"]
    assert started_from == {**origin_of(best), "checkpoint": str(best.path)}
    assert (started_from["epoch"], started_from["step"]) == (1, best.meta["step"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["started_from"] == record["started_from"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_is_not_that_of_a_checkpoint_that_was_trained_anew(
    stopped: bool, first: Path, tiny_shards: str, tmp_path: Path
) -> None:
    """Neither is it answered nor continued, as the same command started now would come to something else."""
    source, where = tmp_path / "source", tmp_path / "run"
    shutil.copytree(first, source)
    cfg = tiny_run(train__init_from=str(source), train__epochs=2)
    if stopped:
        with pytest.raises(StopRequested):
            run(cfg, tiny_shards, where, StopAfter(0))
    else:
        run(cfg, tiny_shards, where)
    shutil.rmtree(source)
    shutil.copytree(where, tmp_path / "copy")
    run(cfg, tiny_shards, where)  # what is gone is no other one
    run(tiny_run(train__epochs=1, seed=7), tiny_shards, source)
    with pytest.raises(
        CheckpointError, match=rf"started from weights with .* train.init_from={source} leads to .* --fresh"
    ):
        run(cfg, tiny_shards, tmp_path / "copy")


def test_averages_and_a_key_encoder_start_there_too(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    """With decay 1 the averaged network, which is what a checkpoint holds, stays where it began."""
    cfg = still(train__init_from=str(first), train__ema_decay=0.999999, model__key_decay=1.0, **TERMS, seed=5)
    run(cfg, tiny_shards, tmp_path / "run")
    found = ckpt.find(tmp_path / "run" / "checkpoints")
    assert found is not None
    state, started = found.train_state(), ckpt.read(first).model_state()
    for copy in ("key", "average"):
        for name, value in started.items():
            if "running_" not in name and "num_batches" not in name:
                torch.testing.assert_close(state[copy][name], value, rtol=0, atol=1e-6)
    assert any(name.startswith("projection.") for name in state["key"]), "drawn by the seed: the checkpoint has none"


def test_a_resumed_run_does_not_start_again(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(train__init_from=str(first))
    run(cfg, tiny_shards, tmp_path / "straight")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "broken", StopAfter(0))
    record = run(cfg, tiny_shards, tmp_path / "broken")
    assert_equal_runs(tmp_path / "straight", tmp_path / "broken")
    assert record["started_from"]["epoch"] == 1


def test_a_frozen_classifier_stays_and_the_features_learn(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(train__init_from=str(first), train__freeze="classifier", train__optim__weight_decay=0.1, **TERMS)
    run(cfg, tiny_shards, tmp_path / "run")
    before, after = ckpt.read(first).model_state(), weights(tmp_path / "run")
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("heads."))
    assert not torch.equal(after["backbone.trunk.conv1.weight"], before["backbone.trunk.conv1.weight"])


def test_another_network_other_classes_or_nothing_is_refused(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    def refusal(uri: str = tiny_shards, **changes: object) -> str:
        with pytest.raises(CheckpointError) as caught:
            run(still(**{"train__init_from": str(first), **changes}), uri, tmp_path / "run")
        return str(caught.value)

    wider = refusal(model__name="resnet20")
    assert wider.startswith(
        f"train.init_from={first} holds another network (model.name: 'resnet8' there, 'resnet20' now)"
    )
    assert "model.head: 'linear' there, 'cosine' now" in refusal(model__head="cosine")
    assert "model.tde.parts: 2 there, 4 now" in refusal(model__tde__parts=4)
    renamed = Path(shutil.copytree(tiny_shards, tmp_path / "renamed"))
    manifest = read_manifest(str(renamed))
    write_manifest(dataclasses.replace(manifest, classes=("ape", *manifest.classes[1:])), str(renamed))
    assert "they must be the same, in the same order" in refusal(str(renamed))
    assert "does not exist" in refusal(train__init_from=str(tmp_path / "nothing"))
    damaged = Path(shutil.copytree(first, tmp_path / "damaged"))
    for meta in damaged.glob("checkpoints/*/meta.json"):
        left = {key: value for key, value in json.loads(meta.read_text()).items() if key != "classes"}
        meta.write_text(json.dumps(left))
    assert "meta.json has no 'classes'. It is damaged" in refusal(train__init_from=str(damaged))


def test_a_checkpoint_that_would_run_code_is_not_unpickled(first: Path, tiny_shards: str, tmp_path: Path) -> None:
    evil = Path(shutil.copytree(first, tmp_path / "evil"))
    for file in evil.glob("checkpoints/*/model.pt"):
        torch.save({"weights": tmp_path}, file)  # any object beside tensors stands for one that does harm
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        run(still(train__init_from=str(evil)), tiny_shards, tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.freeze": "features", "train.init_from": "/first"}, r"train.freeze must be classifier or null"),
        ({"train.init_from": "runs/first"}, r"train.init_from must be an absolute path or a URI.*got 'runs/first'"),
        ({"train.freeze": "classifier"}, r"train.freeze=classifier needs init_from"),
        (
            {"train.freeze": "classifier", "train.init_from": "s3://bucket/runs/first", "objective.base": "paco"},
            r"train.freeze=classifier does not go with objective.base=paco",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(name="plain").replace(keys)


def test_the_authors_stages_of_dro_lt(tiny_shards: str, tmp_path: Path) -> None:
    """Both recipes, one after the other, on the tiny data; the second one starts where the first one's results lie."""
    small = {
        "model.name": "resnet8",
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.precision": "fp32",
        "train.threads": 1,
        "tracking.wandb": False,
        "tracking.tensorboard": False,
        "augment.cutout_fraction": 0.5,
    }
    one, two = load_run("cifar100_lt_dro_ce", small), load_run("cifar100_lt_dro_features", small)
    assert two.train.init_from == f"~/ltcore-runs/{one.name}"
    assert (one.augment, one.model) == (two.augment, two.model)
    run(one, tiny_shards, tmp_path / "one")
    two = two.replace({"train.init_from": str(tmp_path / "one")})
    assert two.train.freeze == "classifier" and two.objective.terms.dro.start == 0
    two = two.replace({"train.images_per_class": 2})
    record = run(two, tiny_shards, tmp_path / "two")
    epochs = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").open()]
    assert all(epoch["train/dro"] > 0 for epoch in epochs), "also in the first one"
    assert record["best"]["val/ncm_top1"] == max(epoch["val/ncm_top1"] for epoch in epochs)
    assert record["started_from"]["checkpoint"].startswith(str(tmp_path / "one"))
    three = load_run("cifar100_lt_dro_classifier", {"stage2.from_run": str(tmp_path / "two"), "tracking.wandb": False})
    last = run(three.replace({"tracking.tensorboard": False, "train.threads": 1}), tiny_shards, tmp_path / "three")
    assert last["stage1"]["epoch"] == record["best"]["epoch"], "the features that the nearest class mean chose"


def first_centroids(uri: str, first: str) -> dict[str, torch.Tensor]:
    cfg, ctx = tiny_run(train__init_from=first, objective__terms__dro__layers="stage1,final"), Rank()
    loader = make_loader(cfg.data, uri, batch_size=8, seed=0, rank=ctx.rank, world=ctx.world)
    parts = build(cfg, loader, ctx)
    start_from(cfg, parts, loader.store.manifest.classes)
    evaluator = Evaluator(
        net=parts.eval_net, loader=loader, device=ctx.device, batch_size=7, normalize=parts.augment.evaluate
    )
    start_centroids(cfg, parts, evaluator)
    memories = parts.step.objective.memories()
    if ctx.world == 1:
        features_ND = pooled_features(evaluator, "train", torch.float32)
        for c in range(4):
            mean_D = features_ND.features_ND[features_ND.labels_N == c].mean(0)
            torch.testing.assert_close(memories["ClassCentroids1"].mean_CD[c].float(), mean_D)  # type: ignore[attr-defined]
    loader.close()
    return {f"{name}/{key}": t for name, m in memories.items() for key, t in {**m.published(), **m.pending()}.items()}


def test_the_first_epoch_has_the_centroids_of_the_weights_it_starts_from(first: Path, tiny_shards: str) -> None:
    one = first_centroids(tiny_shards, str(first))
    assert one["ClassCentroids/count_C"].tolist() == one["ClassCentroids1/count_C"].tolist() == [23, 12, 7, 4]
    assert not one["ClassCentroids/seen_C"].any() and not one["ClassCentroids1/sum_CD"].any()
    for two in run_ranks(first_centroids, 2, tiny_shards, str(first)):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-7, msg=name)


def backbone_file(path: Path, name: str = "resnet50", drop: str = "", **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random weights of torchvision's network, with its classifier, as its files hold them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = getattr(torchvision.models, name)().state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.add_(0.01)  # running statistics are 0 and 1 in a new network
    torch.save({key: value for key, value in (state | extra).items() if key != drop}, path)
    return state


def large(**changes: object) -> Components:
    cfg = tiny_run(model__name="resnet50", train__epochs=1).replace(changes)
    net, objective = build_modules(cfg, 4, ClassStats(torch.tensor([4, 3, 2, 1]), ("many",) * 4), 10)
    step = TrainStep(net, objective, EmaCopy(net, 0.5, buffers="own"), None)
    return Components(step, step, None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_torchvisions_weights_gives_the_backbone_and_no_classifier(tmp_path: Path, old: bool) -> None:
    """Also a file from before batch norm counted its batches."""
    state = backbone_file(tmp_path / "r50.pth", drop="bn1.num_batches_tracked" if old else "")
    parts = large()
    before = {name: value.clone() for name, value in parts.step.net.state_dict().items()}
    cfg = tiny_run(model__name="resnet50").replace({"model.weights": str(tmp_path / "r50.pth")})
    file = tmp_path / "r50.pth"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert start_from(cfg, parts, ("a", "b", "c", "d")) == {"weights": str(file), "sha256": sha256}
    assert parts.step.key is not None
    for net in (parts.step.net, parts.step.key.net):
        found = net.state_dict()
        assert torch.equal(found["backbone.trunk.layer2.3.conv2.weight"], state["layer2.3.conv2.weight"])
        assert torch.equal(found["backbone.branches.0.layer4.2.bn3.running_var"], state["layer4.2.bn3.running_var"])
        assert torch.equal(found["heads.0.weight"], before["heads.0.weight"])
        changed = [name for name, value in found.items() if not torch.equal(value, before[name])]
        assert len(changed) == sum(v.is_floating_point() for k, v in state.items() if not k.startswith("fc."))


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    parts, file = large(), tmp_path / "file.pth"
    cfg = tiny_run(model__name="resnet50").replace({"model.weights": str(file)})

    def refusal() -> str:
        with pytest.raises((CheckpointError, DataError)) as found:
            start_from(cfg, parts, ("a", "b", "c", "d"))
        assert "\n" not in str(found.value)
        return str(found.value)

    assert f"{file} does not exist" in refusal()
    backbone_file(file, "resnet18")
    assert "layer1.0.bn3.bias: nothing there, (256,) expected" in refusal()
    backbone_file(file, **{"conv1.weight": torch.zeros(2)})
    assert "(conv1.weight: (2,) there, (64, 3, 7, 7) expected; 1 in all)" in refusal()
    backbone_file(file, drop="layer4.2.bn3.bias")
    assert "(layer4.2.bn3.bias: nothing there, (2048,) expected; 1 in all)" in refusal()
    backbone_file(file, **{"layer5.weight": torch.zeros(2)})
    assert "(layer5.weight: not part of it; 1 in all)" in refusal()
    backbone_file(file, **{"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))})
    assert f"model.weights={file} holds weights that are not finite (conv1.weight)" in refusal()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**24))
    assert "would unpack to 16777216" in refusal()
    torch.save([1, 2], file)
    assert "does not hold torchvision's weights of this backbone" in refusal()
    file.write_bytes(b"no tensors")
    assert f"{file} is not a file of tensors" in refusal()
    torch.save(
        {"model": {}, "args": Path("a setting")}, file
    )  # as scripts write it; torch would advise to trust the file
    assert refusal().endswith("save the tensors: torch.save(checkpoint[NAME OF THE WEIGHTS], FILE).")
    with pytest.raises(ConfigError, match="freeze=classifier needs init_from with a run or checkpoint"):
        cfg.replace({"train.freeze": "classifier"})
