"""Discovered attributes: clusters are found, merged by size, and the same whatever the order and the threads."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore import rng
from ltcore.data.config import DataConfig
from ltcore.data.datasets.workspace import here
from ltcore.data.glt.choices import Discovery, GltChoices
from ltcore.data.glt.pool import open_pool
from ltcore.data.glt.workspace import build
from ltcore.errors import ConfigError
from ltcore.framing import OWN_WAY
from ltcore.training import discover, predict
from ltcore.training.discover import discovery_of, merged_clusters, open_features
from tests.data.glt_bar import no_bar
from tests.training.runs import run, tiny_run

SHADES = {"dark": 20, "middle": 120, "light": 230}
COUNTS = {"dark": 30, "middle": 18, "light": 12}


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Two classes of noisy grey images in three shades, of which each class has another majority."""
    root = tmp_path_factory.mktemp("shades")
    gen = np.random.default_rng(0)
    for c, name in enumerate(("ant", "bee")):
        for rank, shade in enumerate(SHADES):
            count = list(COUNTS.values())[(rank + c) % 3]
            for n in range(count):
                pixels = gen.normal(SHADES[shade], 6, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                file = root / name / f"{shade}-{n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                out = io.BytesIO()
                Image.fromarray(pixels).save(out, "PNG")
                file.write_bytes(out.getvalue())
    return root


def found(root, folder, discovery, seed=0):
    for name in ("shards", "records", "attributes"):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
    pool, _ = open_pool(DataConfig(uri=str(root)), GltChoices())
    return discovery_of(discovery, seed, here)(pool, Path(folder), no_bar)


def test_a_run_gives_the_features_that_its_classifier_sees(tiny_shards, shades, tmp_path):
    trained = tmp_path / "run"
    run(tiny_run(train__epochs=1), tiny_shards, trained)
    features, predictor = open_features(Discovery(features=str(trained)), 0), predict.load(trained)
    assert (features.image_size, features.framing) == (predictor.image_size, predictor.framing)
    shape = (4, 3, features.image_size, features.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = predictor.net.heads[0](features.extract(images))
        expected = predictor.net(predictor.normalize(images)).logits_BC
    assert torch.allclose(logits, expected, atol=1e-5)
    pool, broken = found(shades, tmp_path / "w", Discovery(features=str(trained), groups=2, clusters=2))
    assert not broken and {(item.label, item.attribute) for item in pool.items} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    (best,) = trained.glob("checkpoints/best-*")
    by_checkpoint, _ = found(shades, tmp_path / "v", Discovery(features=str(best), groups=2, clusters=2))
    assert list(by_checkpoint.items) == list(pool.items)


def test_groups_are_the_clusters_of_each_class_by_size(shades, tmp_path):
    pool, broken = found(shades, tmp_path, Discovery(features="random", groups=3, clusters=3))
    assert not broken and pool.attributes == ("group0", "group1", "group2")
    shade_of = {}
    for item in pool.items:
        shade = item.path.split("/")[1].split("-")[0]
        assert shade_of.setdefault((item.label, item.attribute), shade) == shade
    assert [shade_of[0, group] for group in range(3)] == ["dark", "middle", "light"]
    assert [shade_of[1, group] for group in range(3)] == ["light", "dark", "middle"]


def test_results_depend_on_neither_threads_nor_an_interruption(shades, tmp_path):
    discovery = Discovery(features="random")
    first, _ = found(shades, tmp_path / "a", discovery)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    second, _ = found(shades, tmp_path / "b", discovery)
    torch.set_num_threads(before)
    assert list(first.items) == list(second.items)
    (tmp_path / "b" / "attributes" / "000001.json").unlink()
    times = (tmp_path / "b" / "attributes" / "000000.json").stat().st_mtime_ns
    again, _ = found(shades, tmp_path / "b", discovery)
    assert list(again.items) == list(first.items)
    assert (tmp_path / "b" / "attributes" / "000000.json").stat().st_mtime_ns == times
    other, _ = found(shades, tmp_path / "b", discovery, seed=1)
    assert [item.path for item in other.items] == [item.path for item in first.items]
    assert list(other.items) != list(first.items), (
        "another seed has other groups, and those that are kept are not its own"
    )


def test_another_seed_clusters_the_same_features_otherwise(shades, tmp_path, monkeypatch):
    discovery = Discovery(features="random")
    features = open_features(discovery, 0)
    monkeypatch.setattr(discover, "open_features", lambda *_: features)
    first, again, other = (
        list(found(shades, tmp_path / name, discovery, seed)[0].items) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again != other


def test_another_seed_projects_images_otherwise():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, other, again = (open_features(Discovery(features="random"), seed).extract(images) for seed in (0, 1, 0))
    assert torch.equal(first, again) and not torch.allclose(first, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {},
        lambda record: {**record, "result": [record["result"][0][:-1], {}]},
        lambda record: {**record, "result": [[99] * len(record["result"][0]), {}]},
        lambda record: {**record, "result": [record["result"][0], {"ant/dark-0.png": "x"}]},
        lambda record: [record],
    ],
)
def test_damaged_groups_are_found_again(shades, tmp_path, change):
    first, _ = found(shades, tmp_path, Discovery(features="random"))
    file = tmp_path / "attributes" / "000000.json"
    whole = file.read_bytes()
    file.write_text(json.dumps(change(json.loads(whole))))
    again, broken = found(shades, tmp_path, Discovery(features="random"))
    assert list(again.items) == list(first.items) and not broken and file.read_bytes() == whole


def test_groups_of_other_weights_under_the_same_name_are_not_taken_over(shades, tmp_path, monkeypatch):
    discovery, searched = Discovery(features="random"), []
    find, features = discover.ClassTask._find, open_features(discovery, 0)
    monkeypatch.setattr(discover.ClassTask, "_find", lambda self, label: searched.append(label) or find(self, label))
    for network, labels in (("a", [0, 1]), ("a", []), ("b", [0, 1])):
        monkeypatch.setattr(discover, "open_features", lambda *_, network=network: features._replace(network=network))
        searched.clear()
        found(shades, tmp_path, discovery)
        assert searched == labels


def test_clusters_are_merged_from_the_largest_on():
    centers = torch.arange(6, dtype=torch.float64) * 100
    counts = [5, 40, 10, 20, 30, 15]
    points = torch.cat(
        [center + torch.linspace(0, 1, n, dtype=torch.float64) for center, n in zip(centers, counts, strict=True)]
    )
    groups = merged_clusters(points[:, None], Discovery(features="random"), rng.generator(0, "test"))
    at = np.cumsum([0, *counts])
    of_cluster = [set(groups[a:b]) for a, b in itertools.pairwise(at)]
    assert of_cluster == [{2}, {0}, {2}, {1}, {0}, {1}]  # 40 and 30, 20 and 15, 10 and 5


def test_few_points_are_clusters_of_their_own():
    points = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    assert sorted(merged_clusters(points, Discovery(features="random", clusters=3), rng.generator(0, "t"))) == [0, 1, 2]
    assert merged_clusters(points[:1], Discovery(features="random"), rng.generator(0, "t")) == [0]


def test_broken_images_have_no_group(shades, tmp_path):
    root = tmp_path / "copy"
    for file in shades.rglob("*.png"):
        (root / file.relative_to(shades)).parent.mkdir(parents=True, exist_ok=True)
        (root / file.relative_to(shades)).write_bytes(file.read_bytes())
    (root / "ant" / "dark-0.png").write_bytes(b"none")
    pool, broken = found(root, tmp_path / "w", Discovery(features="random"))
    assert set(broken) == {"ant/dark-0.png"}
    assert [item.path for item in pool.items if item.attribute < 0] == ["ant/dark-0.png"]
    opened, _ = open_pool(DataConfig(uri=str(root)), GltChoices())
    choices = GltChoices(discovery=Discovery(features="random", clusters=3), imbalance_factor=2, test=3, val=3)
    plan, made = build(
        opened, choices, str(tmp_path / "out"), here, bar=no_bar, max_bad_samples=1,
        discover=discovery_of(choices.discovery, 0, here),
    )  # fmt: skip
    assert list(made.provenance["broken"]) == ["ant/dark-0.png"] and plan.total > 0
    assert made.provenance["attributes_from"]["clusters"] == 3


@pytest.mark.parametrize(
    ("discovery", "words"),
    [
        (Discovery(features="resnet5"), "expected random, a run or checkpoint directory, or a backbone"),
        (Discovery(features="resnet50", weights="auto"), "features need weights"),
        (Discovery(features="resnet32"), "no weights of resnet32 are published"),
        (Discovery(features="timm:resnet5"), "timm:resnet5"),
    ],
)
def test_features_that_are_not_there_are_refused_at_once(discovery, words, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    open_features.cache_clear()
    with pytest.raises(ConfigError, match=words):
        discovery_of(discovery, 0, here)


def test_a_backbone_with_a_file_of_weights_gives_its_pooled_features(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    torch.save(network.state_dict(), tmp_path / "r.pth")
    size, framing, extract, _ = open_features(
        Discovery(features="resnet50", weights=str(tmp_path / "r.pth"), image_size=64), 0
    )
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network((images / 255 - mean) / std)
    assert size == 64 and framing == OWN_WAY, "small canvases hold images whole"
    assert torch.allclose(extract(images), expected, atol=1e-4)


def test_a_network_of_timm_gives_its_features_from_images_as_its_weights_saw_them(tmp_path):
    """Lite0's own mean and std are 0.5, torchvision's are others."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "lite0.pth")
    size, _, extract, _ = open_features(
        Discovery(features="timm:tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"), image_size=64), 0
    )
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = network((images / 255 - 0.5) / 0.5)
    assert size == 64 and torch.allclose(extract(images), expected, atol=1e-4)
