"""Retrieval by pseudo-attributes against all descriptions at once, with prototypes of the run and with new ones."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.data.config import DataConfig
from ltcore.data.datasets.inputs import Inputs, Item
from ltcore.data.loading.samples import decode_rows
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import CheckpointError, ConfigError
from ltcore.evaluation.retrieval import Retrieval, spread_queries
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.training import retrieve as retrieving
from ltcore.training.describer import open_backbone, open_describer
from ltcore.training.retrieve import Best, retrieve
from tests.training.runs import TERMS, run, tiny_run

LPA = {name: value for name, value in TERMS.items() if ".lpa." in name}


@pytest.fixture(scope="module")
def with_lpa(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieve") / "lpa"
    run(tiny_run(**LPA, data__uri=tiny_shards), tiny_shards, folder)
    return folder


def state_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("checkpoints/last-*/state.pt")
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def found_in(folder: Path, uri: str, **options: Any) -> Retrieval:
    return retrieve(open_describer(folder), uri, **options)


def descriptions(folder: Path, uri: str) -> tuple[Tensor, Tensor]:
    """Unit vectors of all training images and locations' cosines [N, P, K], in float64 and from the definition."""
    describer = open_describer(folder)
    published = state_of(folder)["memories"]["Prototypes"]["published"]
    store = ShardStore(uri)
    canvases = torch.from_numpy(decode_rows(store, "train", torch.arange(46).numpy(), 16))
    fmap_BDhw = describer.outputs(canvases).fmap_BDhw
    assert fmap_BDhw is not None
    cosine_BPK = normalize(fmap_BDhw.flatten(2).transpose(1, 2), dim=2) @ published["prototypes"].T
    shares_BK = torch.nn.functional.one_hot(cosine_BPK.argmax(2), 4).double().mean(1)
    mass_CK = published["mass"].double()
    return normalize(shares_BK - (mass_CK / mass_CK.sum(1, keepdim=True)).mean(0), dim=1), cosine_BPK


def test_neighbors_are_those_of_all_descriptions_at_once(
    with_lpa: Path, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ShardStore(tiny_shards)
    for index in (5, 40):
        (tmp_path / f"{index}.png").write_bytes(store.read_rows("train", torch.tensor([index]).numpy())[0])
    images = list(Inputs([str(tmp_path)], store.manifest.classes))
    found = found_in(with_lpa, tiny_shards, images=images, neighbors=6)
    vectors_NK, cosine_NPK = descriptions(with_lpa, tiny_shards)
    for query, own in zip(found.queries, (40, 5), strict=True):
        similar_N = vectors_NK @ vectors_NK[own]
        order = similar_N.argsort(descending=True, stable=True)[:6]
        assert torch.allclose(
            torch.tensor([n.similarity for n in query.neighbors]), similar_N[order].float(), atol=1e-5
        )
        assert {n.index for n in query.neighbors if n.similarity > query.neighbors[-1].similarity + 1e-5} <= set(
            order.tolist()
        )
        assert [n.label for n in query.neighbors] == [store.labels("train")[n.index] for n in query.neighbors]
        assert query.neighbors[0].similarity == pytest.approx(1.0), "the image itself, or one with the same parts"
    monkeypatch.setattr(retrieving, "_BATCH", 7)
    again = found_in(with_lpa, tiny_shards, images=images, neighbors=6)
    assert [[n.index for n in q.neighbors] for q in again.queries] == [
        [n.index for n in q.neighbors] for q in found.queries
    ]
    for prototype in found.prototypes:
        peak_N = cosine_NPK[:, :, prototype.number].amax(1)
        best = peak_N.sort(descending=True).values[: len(prototype.patches)]
        assert torch.allclose(torch.tensor([p.activation for p in prototype.patches]), best, atol=1e-5)
        assert len({p.index for p in prototype.patches}) == len(prototype.patches) == 8, "different images"
        first = prototype.patches[0]
        place = int(cosine_NPK[first.index, :, prototype.number].argmax())
        assert first.box == (place // 4 / 4, place % 4 / 4, 0.25, 0.25)


def test_a_run_with_lpa_is_searched_with_its_key_encoder_and_its_prototypes(with_lpa: Path, tiny_shards: str) -> None:
    describer, state = open_describer(with_lpa), state_of(with_lpa)
    assert torch.equal(describer.memory.prototypes_KD, state["memories"]["Prototypes"]["published"]["prototypes"])
    key = {name: value for name, value in state["key"].items() if not name.startswith("projection.")}
    own = describer.predictor.net.state_dict()
    assert own.keys() == key.keys() and all(torch.equal(own[name], key[name]) for name in key)
    found = retrieve(describer, tiny_shards)
    assert (found.num_prototypes, found.num_images, found.query_split) == (4, 46, "test")
    assert found.origin == "4 prototypes, those of the training with LPA after epoch 3"
    labels = [query.label for query in found.queries]
    assert len(labels) == len(set(labels)) == 4, "every class of these few"


def test_another_run_gets_prototypes_from_its_local_features(stage1: Path, tiny_shards: str) -> None:
    first, second = (found_in(stage1, tiny_shards) for _ in range(2))
    assert (first.num_prototypes, first.num_shown) == (32, 16) and first.origin.endswith("none of its own")
    assert [replace(query, canvas_3SS=None) for query in first.queries] == [  # type: ignore[arg-type]
        replace(query, canvas_3SS=None)  # type: ignore[arg-type]
        for query in second.queries
    ]
    assert (first.prototypes, first.pairs, first.borrowed) == (second.prototypes, second.pairs, second.borrowed)
    named = {part.prototype for pair in (*first.pairs, *first.borrowed) for part in pair.parts}
    assert named <= {prototype.number for prototype in first.prototypes}
    assert sum(p.share for p in found_in(stage1, tiny_shards, prototypes=32).prototypes) == pytest.approx(1.0)


def test_a_checkpoint_without_training_state_gets_new_prototypes(with_lpa: Path, tiny_shards: str) -> None:
    (best,) = with_lpa.glob("checkpoints/best-*")
    origin = found_in(best, tiny_shards).origin
    assert "k-means" in origin and "those of its training with LPA are in state.pt, which this checkpoint is" in origin


def test_damaged_prototypes_are_refused(with_lpa: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(with_lpa, tmp_path / "copy")
    (file,) = copy.glob("checkpoints/last-*/state.pt")
    state = state_of(copy)
    state["memories"]["Prototypes"]["published"]["mass"] = torch.zeros(3, 4)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"state\.pt does not hold the prototypes of its configuration \(mass\)"):
        open_describer(copy)
    published = state["memories"]["Prototypes"]["published"]
    published["mass"] = torch.zeros(4, 4, dtype=torch.int64)
    for name, value in {"prototypes": math.nan, "schedule": 5.0}.items():
        before = published[name].clone()
        published[name].view(-1)[0] = value
        torch.save(state, file)
        with pytest.raises(CheckpointError, match=rf"the prototypes of its configuration \({name}\)"):
            open_describer(copy)
        published[name] = before
    state["key"] = None
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="key encoder"):
        open_describer(copy)


def test_a_backbone_with_published_weights_sees_images_as_they_were_trained(tiny_shards: str, tmp_path: Path) -> None:
    own = LongTailNet(ModelConfig(name="resnet50"), 4, frozenset(), 7).state_dict()
    prefix = re.compile(r"^backbone\.(trunk|branches\.0)\.")
    weights = {prefix.sub("", name): value for name, value in own.items() if name.startswith("backbone.")}
    torch.save(weights, tmp_path / "r50.pth")
    data = DataConfig(uri=tiny_shards, image_size=64)
    opened = open_backbone("resnet50", f"{tmp_path}/r50.pth", data, read_manifest(tiny_shards))
    for name, value in opened.predictor.net.backbone.state_dict(prefix="backbone.").items():
        assert torch.equal(value, own[name])
    black_B3SS = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    expected = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(opened.predictor.normalize(black_B3SS)[0, :, 5, 5], expected)
    assert (opened.memory.num_clusters, opened.memory.spec.num_attributes) == (0, 32)
    assert opened.boxes(opened.outputs(black_B3SS)).tolist() == [
        [top, left, 0.5, 0.5] for top in (0.0, 0.5) for left in (0.0, 0.5)
    ]
    with pytest.raises(ConfigError, match=r"--weights: .*no weights of resnet8 are published"):
        open_backbone("resnet8", "default", DataConfig(uri=tiny_shards), read_manifest(tiny_shards))


def test_data_without_the_training_split_are_refused(with_lpa: Path, tiny_shards: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_shards, tmp_path / "shards")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["splits"]["train"], manifest["class_counts"]["train"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="no images in the training split 'train'"):
        found_in(with_lpa, str(copy))


def test_an_image_like_the_mean_class_has_no_neighbors(
    with_lpa: Path, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    describer = open_describer(with_lpa)
    monkeypatch.setattr(
        retrieving, "describe", lambda scores_BK, *_, **__: torch.zeros(scores_BK.shape, dtype=torch.float64)
    )
    image = Item("mean", lambda: ShardStore(tiny_shards).read_rows("test", torch.tensor([0]).numpy())[0])
    (query,) = retrieve(describer, tiny_shards, [image]).queries
    assert (query.neighbors, query.label, query.same_class) == ((), None, 0)


def test_best_keeps_the_largest_and_of_equals_the_first() -> None:
    gen = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (3, 50), generator=gen).double()
    rows = torch.arange(50)[None, :, None].expand(3, -1, 2)
    best = Best(3, 7)
    for part in torch.arange(50).split(11):
        best.add(values[:, part], rows[:, part])
    order = values.argsort(dim=1, descending=True, stable=True)[:, :7]
    assert torch.equal(best.rows_GSn[:, :, 0], order) and torch.equal(best.values_GS, values.gather(1, order))


def test_queries_are_spread_over_the_shot_groups() -> None:
    groups = ["many"] * 10 + ["medium"] * 2 + ["few"] * 5
    labels_N = torch.arange(17).repeat(4).numpy()
    chosen = spread_queries(labels_N, groups, 3, "test")
    assert labels_N[chosen].tolist() == [0, 4, 9, 10, 11, 12, 14, 16]
    assert spread_queries(labels_N[:10], groups, 1, "test") == [0]
