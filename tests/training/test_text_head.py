"""Classifiers that begin at CLIP's text features: the rows, ranks, resume, which encoder is meant, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from ltcore.config.load import load_run  # noqa: E402
from ltcore.data.shards.manifest import read_manifest  # noqa: E402
from ltcore.errors import CheckpointError, ConfigError  # noqa: E402
from ltcore.models import clip_text  # noqa: E402
from ltcore.models.clip_text import TextConfig, text_clip  # noqa: E402
from ltcore.models.net import LongTailNet, ModelConfig  # noqa: E402
from ltcore.training.class_words import class_words, unreadable  # noqa: E402
from ltcore.training.context import StopRequested  # noqa: E402
from ltcore.training.init_from import initial_weights  # noqa: E402
from ltcore.training.preflight import check_run  # noqa: E402
from ltcore.training.rehearsal import rehearse  # noqa: E402
from ltcore.training.settle import settled  # noqa: E402
from ltcore.training.text_head import prompts, text_rows  # noqa: E402
from tests.clips import NAME, NETWORK, Clips, expected, register, write_clips  # noqa: E402
from tests.ddp import run_ranks  # noqa: E402
from tests.training.heads import STILL, started  # noqa: E402
from tests.training.runs import StopAfter, assert_equal_runs, run, stage2_run, tiny_run, weights  # noqa: E402

CLASSES = ("maple_tree", "sea horse", "cup")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return write_clips(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)


def model(clips: Clips, **changes: Any) -> ModelConfig:
    text = {"name": clips.config.stem, "weights": clips.text} | changes.pop("text", {})
    fields = {"name": f"timm:{NETWORK}", "weights": clips.image, "head_init": "text", "text": TextConfig(**text)}
    return ModelConfig(**{**fields, **changes})


def rows(clips: Clips, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Tensor:
    return text_rows(model(clips, **changes), classes, 64, CPU)[0]


def test_the_rows_are_the_text_features_in_the_space_of_image_features(clips: Clips) -> None:
    sentences = ["a photo of a maple tree.", "a photo of a sea horse.", "a photo of a cup."]
    texts, theirs = expected(clips, sentences)
    found, origin = text_rows(model(clips), CLASSES, 64, CPU)
    torch.testing.assert_close(found.float(), theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert (found[0] @ found[1]) < 0.999, "different classes have different rows"
    assert origin["text_sha256"] == hashlib.sha256(Path(clips.text).read_bytes()).hexdigest()
    image = timm.create_model(NETWORK, num_classes=24, checkpoint_path=clips.image).eval()
    with torch.no_grad():  # z . P^T t = P z . t: zero-shot scores up to the lengths of P^T t
        features = image.forward_features(torch.randn(5, 3, 160, 160))
        ours = image.forward_head(features, pre_logits=True) @ found.float().T
        scores = image.forward_head(features) @ texts.T
    torch.testing.assert_close(scores / (texts @ image.head.weight).norm(dim=1), ours, rtol=1e-3, atol=1e-4)


def test_one_file_of_a_whole_clip_gives_its_zero_shot_scores(tmp_path: Path) -> None:
    """Of images by our network and texts by our rows, but for the lengths of the rows; images by open_clip for comparison."""
    vision = {"image_size": 224, "layers": 10, "width": 256, "patch_size": 16}
    clips = write_clips(tmp_path, "small-clip", vision_cfg=vision, image=False)
    cfg = model(clips, name="timm:vit_xsmall_patch16_clip_224", weights=clips.text)
    net = LongTailNet(cfg, 3, frozenset(), 0)
    net.load_state_dict(initial_weights(cfg, net.state_dict())[0])
    found = text_rows(cfg, CLASSES, 256, CPU)[0].float()
    theirs = open_clip.create_model("small-clip", pretrained=clips.text).eval()
    images, tokens = torch.randn(2, 3, 224, 224), open_clip.get_tokenizer("small-clip")
    with torch.no_grad():
        ours = net.eval()(images).features_BD @ found.T
        texts = theirs.encode_text(tokens(prompts("a photo of a {}.", CLASSES)), normalize=True)
        lengths = (texts @ theirs.visual.proj.T).norm(dim=1)
        torch.testing.assert_close(ours * lengths, theirs.encode_image(images) @ texts.T, rtol=1e-3, atol=1e-4)


def test_prompt_order_and_number_of_classes_act_as_said(clips: Clips) -> None:
    assert prompts("{}, a kind of {bird}", ["a_b", "{}"]) == ["a b, a kind of {bird}", "{}, a kind of {bird}"]
    plain = rows(clips)
    assert torch.equal(rows(clips), plain)
    torch.testing.assert_close(rows(clips, CLASSES[::-1]), plain.flip(0), rtol=0, atol=1e-6)
    assert not torch.allclose(rows(clips, text={"prompt": "{}"}), plain, atol=1e-3)


def test_an_encoder_with_a_module_of_its_own_reads_files_with_and_without_it(tmp_path: Path, clips: Clips) -> None:
    own = write_clips(tmp_path, "tiny-custom-clip", custom_text=True)
    assert "text.text_projection" in torch.load(own.text)
    torch.testing.assert_close(rows(own).float(), expected(own, prompts("a photo of a {}.", CLASSES))[1])
    older = dataclasses.replace(own, text=clips.text)
    torch.testing.assert_close(rows(older, weights=clips.image), rows(clips), rtol=1e-6, atol=1e-7)


def test_quick_gelu_is_another_function(tmp_path: Path, clips: Clips) -> None:
    quick = dataclasses.replace(write_clips(tmp_path, "tiny-quick-clip", quick_gelu=True), text=clips.text)
    assert not torch.allclose(rows(quick, weights=clips.image), rows(clips), atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "cosine", "tde"])
def test_a_run_begins_with_them_and_writes_down_the_file(
    clips: Clips, tiny_shards: str, tmp_path: Path, head: str
) -> None:
    cfg = tiny_run(**clips.keys | STILL | {"model.head": head})
    record = run(cfg, tiny_shards, tmp_path / "run")
    found = weights(tmp_path / "run")
    names = read_manifest(tiny_shards).classes
    torch.testing.assert_close(found["heads.0.weight"], rows(clips, names).float(), rtol=1e-5, atol=1e-6)
    if head == "linear":
        assert found["heads.0.bias"].abs().max() < 1e-6
    origin = record["started_from"]
    assert origin["weights"] == clips.image and origin["text_weights"] == clips.text
    assert {len(origin[key]) for key in ("sha256", "text_sha256")} == {64}
    assert origin["open_clip"] == open_clip.__version__


def test_averages_begin_with_the_same_rows_and_the_backbone_is_left(clips: Clips, tiny_shards: str) -> None:
    found = started(tiny_run(**clips.keys, train__ema_decay=0.9).to_dict(), tiny_shards)
    assert torch.equal(found["average.heads.0.weight"], found["net.heads.0.weight"])
    for name, value in found.items():
        if name.startswith("net.backbone."):
            assert torch.equal(value, found[f"drawn.{name.removeprefix('net.')}"]), name


def head_of(config: str, tree: dict[str, Any], uri: str) -> Tensor:
    register(Path(config))
    return started(tree, uri)["net.heads.0.weight"]


@pytest.mark.slow
def test_two_ranks_begin_with_the_bits_of_one(clips: Clips, tiny_shards: str) -> None:
    tree = tiny_run(**clips.keys).to_dict()
    one = head_of(str(clips.config), tree, tiny_shards)
    for two in run_ranks(head_of, 2, str(clips.config), tree, tiny_shards):
        assert torch.equal(two, one)


def test_a_cut_run_ends_as_the_whole_one(clips: Clips, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(**clips.keys, model__tune="adaptformer")
    run(cfg, tiny_shards, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "cut", StopAfter(1))
    run(cfg, tiny_shards, tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_it_is_not_continued_with_another_file(clips: Clips, tiny_shards: str, tmp_path: Path) -> None:
    file = tmp_path / "clip.pt"
    file.write_bytes(Path(clips.text).read_bytes())
    cfg = tiny_run(**clips.keys | {"model.text.weights": str(file)})
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "run", StopAfter(1))
    state = torch.load(file)
    state["text_projection"] += 1
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"now model.text.weights=.*clip.pt leads to .* --fresh"):
        run(cfg, tiny_shards, tmp_path / "run")
    file.unlink()  # a file that is gone is no other one
    assert run(cfg, tiny_shards, tmp_path / "run")["status"] == "finished"


def test_stage_2_takes_such_a_run_and_no_such_key(clips: Clips, tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(**clips.keys, train__epochs=1), tiny_shards, tmp_path / "first")
    second = run(stage2_run(tmp_path / "first", "ncm"), tiny_shards, tmp_path / "ncm")
    assert second["config"]["model.head_init"] == "text"
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"model.head_init"):
        run(stage2_run(tmp_path / "other", "ncm", model__head_init="text"), tiny_shards, tmp_path / "second")


def refusal(clips: Clips, words: str, kind: type[Exception] = CheckpointError, **changes: Any) -> None:
    with pytest.raises(kind, match=words) as found:
        rows(clips, **changes)
    assert "\n" not in str(found.value)


def test_files_of_others_are_refused(clips: Clips, tmp_path: Path) -> None:
    state, image = torch.load(clips.text), load_file(clips.image)
    file = str(tmp_path / "file.pt")

    def text(**changes: Tensor) -> dict[str, Any]:
        torch.save({key: value for key, value in {**state, **changes}.items() if value is not None}, file)
        return {"text": {"weights": file}}

    refusal(
        clips,
        r"does not hold the text encoder of tiny-clip \(ln_final.bias: nothing there",
        **text(**{"ln_final.bias": None}),
    )  # type: ignore[arg-type]
    refusal(
        clips, r"ln_final.bias: \(2,\) there, \(16,\) expected; 1 in all", **text(**{"ln_final.bias": torch.ones(2)})
    )
    refusal(clips, r"not finite \(ln_final.bias\)", **text(**{"ln_final.bias": torch.full((16,), torch.nan)}))
    refusal(clips, r"another CLIP than model.weights", **text(**{"visual.proj": torch.randn(64, 24)}))
    refusal(clips, r"another CLIP than model.weights", **text(**{"visual.proj": torch.randn(32, 24)}))
    Path(file).write_bytes(b"no tensors")
    refusal(clips, r"model.text.weights=.* is not a file of tensors", text={"weights": file})
    refusal(clips, r"model.text.weights=/none.pt does not exist", text={"weights": "/none.pt"})
    plain = str(tmp_path / "plain.safetensors")
    save_file({key: value for key, value in image.items() if not key.startswith("head.")}, plain)
    refusal(clips, r"holds no projection of CLIP", weights=plain)
    tuned = str(tmp_path / "tuned.safetensors")
    save_file({**image, "head.weight": torch.randn(10, 64), "head.bias": torch.zeros(10)}, tuned)
    alone = text(**{"visual.proj": None})  # type: ignore[arg-type]
    wrong = (
        r"text features of length 24, and model.name=timm:test_vit image features of length 64, but .* of \(10, 64\)"
    )
    refusal(clips, wrong, ConfigError, weights=tuned, **alone)
    torch.testing.assert_close(rows(clips, **alone), rows(clips), rtol=0, atol=0)


def test_a_missing_extra_is_named_before_anything_starts(
    clips: Clips, tiny_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, manifest = tiny_run(**clips.keys), read_manifest(tiny_shards)
    check_run(cfg, manifest)
    monkeypatch.setattr(clip_text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"model.head_init=text needs open_clip.*ltcore\[clip\]"):
        check_run(cfg, manifest)


def test_weights_of_a_tag_are_looked_for_where_the_error_says(tmp_path: Path) -> None:
    found = text_clip("timm:vit_base_patch16_clip_quickgelu_224", "openai", TextConfig())
    with pytest.raises(
        CheckpointError, match=r"model.text.weights=openai: open_clip_model.safetensors .* put it to"
    ) as said:
        found.file()
    assert found.published is not None and str(found.published.place) in str(said.value)
    found.published.place.parent.mkdir(parents=True)
    found.published.place.write_bytes(b"")
    assert found.file() == str(found.published.place)


@pytest.mark.parametrize(
    ("network", "tag", "clip"),
    [
        ("vit_base_patch16_clip_quickgelu_224", "openai", ("ViT-B-16-quickgelu", "openai")),
        ("vit_base_patch16_clip_224.openai", None, ("ViT-B-16-quickgelu", "openai")),
        ("vit_base_patch16_clip_224.openai", "default", ("ViT-B-16-quickgelu", "openai")),
        ("vit_large_patch14_clip_224", "laion400m_e32", ("ViT-L-14", "laion400m_e32")),
        ("vit_base_patch16_clip_224", "laion2b", ("ViT-B-16", "laion2b_s34b_b88k")),
    ],
)
def test_the_clip_of_published_weights_is_found(network: str, tag: str | None, clip: tuple[str, str]) -> None:
    found = text_clip(f"timm:{network}", tag, TextConfig())
    assert (found.name, found.weights) == clip and found.quick_gelu == ("quick" in clip[0])


def test_a_name_without_quickgelu_gets_the_activation_of_the_tag() -> None:
    found = text_clip("timm:vit_base_patch16_clip_224", "openai", TextConfig(name="ViT-B-16"))
    assert found.quick_gelu and found.weights == "openai"


def test_repositories_that_moved_exist_in_both_packages() -> None:
    for repository, (name, tag) in clip_text._MOVED.items():
        assert timm.models.get_pretrained_cfg(repository.removeprefix("timm/")).hf_hub_id == repository
        assert tag in open_clip.list_pretrained_tags_by_model(name)


@pytest.mark.parametrize(
    ("network", "weights", "text", "words"),
    [
        ("resnet50.a1_in1k", None, {}, r"which text encoder belongs to .*resnet50.* is not known. Set model.text.name"),
        ("vit_base_patch16_clip_224.openai", "/x.pth", {}, r"Set model.text.weights, such as openai, or a file"),
        ("resnet50", None, {"name": "ViT-B-61"}, r"model.text.name=ViT-B-61 is no CLIP .*ViT-B-16"),
        ("resnet50", None, {"name": "ViT-B-16", "weights": "opnai"}, r"model.text.weights=opnai: .*openai"),
        ("resnet50", None, {"name": "ViT-B-16-SigLIP", "weights": "webli"}, r"tokenizer that is not open_clip's own"),
        ("resnet50", None, {"name": "coca_ViT-B-32", "weights": "laion2b_s13b_b90k"}, r"is not supported"),
    ],
)
def test_an_encoder_that_is_not_clear_is_asked_for(
    network: str, weights: str, text: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        text_clip(f"timm:{network}", weights, TextConfig(**text))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model.name": "resnet8"}, r"model.head_init=text needs an image encoder of CLIP.*got model.name=resnet8"),
        ({"model.weights": None}, r"model.head_init=text needs the weights .*got model.weights=null"),
        ({"model.weights": "auto"}, r"model.head_init=text needs the weights .*got model.weights=auto"),
        ({"train.init_from": "/run"}, r"model.weights=/w.pth would have no effect beside train.init_from=/run"),
        ({"model.text.prompt": "a photo"}, r"model.text.prompt must have \{\} once.*'a photo'"),
        ({"model.text.weights": "clip.pt"}, r"model.text.weights must be null, a tag .*'clip.pt'"),
        ({"model.text.names": "names.csv"}, r"model.text.names must be null or a file .* absolute .*'names.csv'"),
        ({"model.text.names": "/names.xlsx"}, r"model.text.names must be null or a file \(.json, .csv, .tsv, .txt\)"),
        ({"model.text.weights": "auto"}, r"model.text.weights must be null, a tag .*'auto'"),
    ],
)
def test_what_it_does_not_go_with_is_refused(keys: dict[str, Any], words: str) -> None:
    base = {
        "model.name": f"timm:{NETWORK}",
        "model.weights": "/w.pth",
        "model.head_init": "text",
        "model.text.name": NAME,
    }
    with pytest.raises(ConfigError, match=words):
        tiny_run(**base | keys)


def test_names_without_a_word_are_warned_of_once(clips: Clips, tiny_shards: str) -> None:
    assert unreadable(["7", "n01440764", "03", "cup", "éléphant", "a"]) == ["7", "n01440764", "03", "a"]
    manifest = dataclasses.replace(read_manifest(tiny_shards), classes=("0", "1", "2", "cup"))
    cfg = tiny_run(**clips.keys)
    said: list[str] = []
    settled(cfg, manifest, said.append, typed=clips.keys, stored=None)
    settled(cfg, manifest, said.append, typed=clips.keys, stored=cfg.to_flat())
    assert len([line for line in said if "3 of 4 class names hold no word ('0', '1', '2')" in line]) == 1
    said.clear()
    settled(cfg.replace({"model.head_init": "class_means"}), manifest, said.append, typed={}, stored=None)
    assert not any("hold no word" in line for line in said)


def test_names_that_are_nearly_all_without_a_word_are_refused(clips: Clips, tiny_shards: str) -> None:
    """A run would begin at a photo of a n01440764."""
    manifest = dataclasses.replace(read_manifest(tiny_shards), classes=("n01440764", "n01443537", "3", "4"))
    cfg = tiny_run(**clips.keys)
    words = r"^4 of 4 class names hold no word \('n01440764', 'n01443537', '3' and 1 more\), .* set model.text.names=FILE .*$"
    with pytest.raises(ConfigError, match=words):
        settled(cfg, manifest, print, typed=clips.keys, stored=None)
    settled(cfg, manifest, print, typed=clips.keys, stored=cfg.to_flat())  # its classifier has begun
    settled(cfg.replace({"model.head_init": "class_means"}), manifest, print, typed={}, stored=None)


SHOWN = ["sea horse", "tench, Tinca tinca"]


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".json", '{"1": "sea horse", "n01440764": "tench, Tinca tinca", "more": "x"}'),
        (".csv", 'class,words\n\nn01440764,"tench, Tinca tinca"\n1,sea horse\n'),
        (".tsv", "n01440764\ttench, Tinca tinca\r\n1\tsea horse\r\n1\tsea horse"),
        (".txt", "n01440764 tench, Tinca tinca\n1\tsea horse\n"),
    ],
)
def test_words_of_a_file_take_the_place_of_names(clips: Clips, tmp_path: Path, ending: str, text: str) -> None:
    file = tmp_path / f"names{ending}"
    file.write_text(f"\ufeff{text}", newline="")
    assert list(class_words(str(file), ["1", "n01440764"])[0]) == SHOWN
    found, origin = text_rows(model(clips, text={"names": str(file)}), ["1", "n01440764"], 64, CPU)
    assert torch.equal(found, rows(clips, tuple(SHOWN)))
    assert origin["text_names"] == str(file)
    assert origin["text_names_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("ending", "text", "words"),
    [
        (".json", "[1]", r"is no table of classes and words \(expected an object .* found a list\)"),
        (".json", '{"a": 1}', r"\('a': expected a class and its words, each of 1 to 1024 characters\)"),
        (".json", '{"a', r"is no table of classes and words"),
        (".csv", "a,b\nc,d,e", r"\(line 2: expected a class and its words"),
        (".tsv", "a b", r"\(line 1: expected a class and its words"),
        (".txt", "a", r"\(line 1: expected a class and its words"),
        (".txt", f"a {'b' * 1025}", r"\(line 1: expected a class and its words"),
        (".tsv", "a\tb\n\na\tc", r"\(line 3: 'a' stands there a second time, with other words\)"),
        (".txt", "a b", r"has no words for 2 of 2 classes \(x, y\): expected one entry for each"),
        (".txt", "x b", r"has no words for 1 of 2 classes \(y\)"),
        (".txt", "x" * (2**24 + 1), r"has more than 16777216 bytes"),
    ],
)
def test_a_file_without_words_for_every_class_is_refused(tmp_path: Path, ending: str, text: str, words: str) -> None:
    file = tmp_path / f"names{ending}"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as found:
        class_words(str(file), ["x", "y"])
    assert str(found.value).startswith(f"model.text.names={file} ") and "\n" not in str(found.value)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"^model.text.names=.* does not exist"):
        class_words(str(file), ["x", "y"])


def test_a_run_notes_its_words_and_goes_on_with_no_others(clips: Clips, tiny_shards: str, tmp_path: Path) -> None:
    file, classes = tmp_path / "names.tsv", read_manifest(tiny_shards).classes
    file.write_text("".join(f"{name}\tword {name}\n" for name in classes))
    cfg = tiny_run(**clips.keys | {"model.text.names": str(file)})
    with pytest.raises(StopRequested):
        run(cfg, tiny_shards, tmp_path / "run", StopAfter(1))
    file.write_text("".join(f"{name}\tother {name}\n" for name in classes))
    with pytest.raises(
        CheckpointError, match=r"started from class names with hash .*, now model.text.names=.* leads to"
    ):
        run(cfg, tiny_shards, tmp_path / "run")
    file.unlink()
    assert len(run(cfg, tiny_shards, tmp_path / "run")["started_from"]["text_names_sha256"]) == 64


def test_the_recipe_of_lift_says_a_command_that_is_a_run() -> None:
    cfg = load_run("imagenet_lt_lift", {"model.head_init": "text"})
    assert cfg.model.head_init == "text"
    assert text_clip(cfg.model.name, cfg.model.weights, cfg.model.text).name == "ViT-B-16-quickgelu"


def test_a_dry_run_tries_the_text_encoder(clips: Clips, tiny_shards: str, tmp_path: Path) -> None:
    cfg = tiny_run(**clips.keys)
    assert "the text encoder fits the network" in rehearse(cfg, tiny_shards, str(tmp_path))[0]
    with pytest.raises(CheckpointError, match=r"model.text.weights=.*none.* does not exist"):
        rehearse(cfg.replace({"model.text.weights": str(tmp_path / "none.safetensors")}), tiny_shards, str(tmp_path))
