"""Text encoders of CLIP by open_clip: which one belongs to a network of timm, the file of its weights, its features.

    t_c = E_text(prompt of class c) / |.|                                                     [C, d]

The image encoder of the same CLIP ends in a projection P [d, D] of the features that timm gives. timm and open_clip publish
most weights in the same repository, by which they are matched. Only encoders with open_clip's own tokenizer are known
here: those of others need more packages, and files of their own.

open_clip is imported when a text encoder is looked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ltcore.errors import CheckpointError, ConfigError, nearest
from ltcore.models.timm_backbone import pretrained_config
from ltcore.models.timm_names import FILES, NO_TAG, is_tag, is_timm
from ltcore.models.timm_weights import Published, fetch
from ltcore.uris import check_uris

TEXT = "text"
INSTALL = "uv add 'ltcore[clip]' (or pip install 'ltcore[clip]')"
NAME_FILES = (".json", ".csv", ".tsv", ".txt")
"""Endings of files with words for classes."""
AT_ONCE = 256
"""Prompts in a forward pass: the same for every run, so that no setting of one changes a bit of the features."""
_NO_IMAGES = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 16}
"""An image encoder in the place of the real one, which nothing here uses and which may be a hundred times as large."""
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_MOVED = {
    "timm/vit_base_patch32_clip_224.laion2b": ("ViT-B-32", "laion2b_s34b_b79k"),
    "timm/vit_base_patch16_clip_224.laion2b": ("ViT-B-16", "laion2b_s34b_b88k"),
    "timm/vit_large_patch14_clip_224.laion2b": ("ViT-L-14", "laion2b_s32b_b82k"),
    "timm/vit_huge_patch14_clip_224.laion2b": ("ViT-H-14", "laion2b_s32b_b79k"),
}
"""Repository of timm -> name and tag of open_clip, which has the same weights in another repository."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder of CLIP at whose features the classifier begins. No effect unless ``model.head_init`` is 'text'."""

    name: str | None = None
    """Its CLIP by open_clip's name, such as 'ViT-B-16-quickgelu'. null: the one of which ``model.name`` is the image encoder,
    or an error where that leaves a doubt."""
    weights: str | None = None
    """Its weights: open_clip's tag ('openai'), which is downloaded where it is not at hand, or a file of the whole CLIP (.pth,
    .pt, .safetensors) with open_clip's names, as an absolute path or URI. null: the tag of the CLIP that ``model.weights`` is
    of, or an error where that leaves a doubt, as of a file."""
    prompt: str = "a photo of a {}."
    """What is said of a class, with {} once, where its name comes; underscores of names become spaces."""
    names: str | None = None
    """File with words for every class, where the names of the classes are none, such as 'n01440764': .json, an object of class ->
    words; .csv or .tsv, a line of both for each; .txt, where the first space or tab divides them. An absolute path or URI. null:
    the names themselves, of which hardly any may be without a word."""

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt must have {{}} once, where the name of a class comes, got {self.prompt!r}")
        check_uris(weights=self.weights, names=self.names)
        if self.names is not None and not (self.names.endswith(NAME_FILES) and _is_absolute(self.names)):
            raise ValueError(
                f"names must be null or a file ({', '.join(NAME_FILES)}) as an absolute path or URI, because workers change "
                f"directory, got {self.names!r}"
            )
        if self.weights is None or is_tag(self.weights):
            return
        if self.weights in NO_TAG or not self.weights.endswith(FILES) or not _is_absolute(self.weights):
            raise ValueError(
                f"weights must be null, a tag of open_clip or a file ({', '.join(FILES)}) as an absolute path or URI, because "
                f"workers change directory, got {self.weights!r}"
            )


def _is_absolute(uri: str) -> bool:
    return uri.startswith(("/", "~")) or "://" in uri


@dataclass(frozen=True)
class TextClip:
    """A CLIP whose text encoder is used."""

    name: str
    quick_gelu: bool
    weights: str
    """open_clip's tag, or the URI of a file."""
    published: Published | None
    """Where the weights of a tag are; None of a file."""

    def file(self) -> str:
        """Returns the file of the weights, downloaded where it is not at hand. Raises CheckpointError where it cannot be."""
        if self.published is None:
            return self.weights
        return str(fetch(self.published, f"model.text.weights={self.weights}", f"{self.name} of open_clip"))


def open_clip() -> Any:
    """Returns the package open_clip. Raises ConfigError where it is not installed."""
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError(f"model.head_init={TEXT} needs open_clip, which is not installed. Install it with {INSTALL}.")
    import open_clip

    return open_clip


def check_text(head_init: str, network: str, weights: str | None, num_experts: int) -> None:
    """Raises ValueError where a classifier that begins at text features does not go with the network or its weights."""
    if head_init != TEXT:
        return
    if not is_timm(network) or num_experts > 1:
        raise ValueError(
            f"head_init={TEXT} needs an image encoder of CLIP with one classifier, got model.name={network} with "
            f"num_experts={num_experts}. Set model.name=timm:vit_base_patch16_clip_quickgelu_224 and model.weights=openai, or "
            "head_init=class_means"
        )
    if weights is None or weights == "auto":
        raise ValueError(
            f"head_init={TEXT} needs the weights of an image encoder of CLIP, got model.weights={weights or 'null'}: text says "
            "nothing to other features. Set model.weights to default, a tag or a file, and train.init_from to null, or "
            "head_init=class_means"
        )


def text_clip(network: str, weights: str | None, text: TextConfig) -> TextClip:
    """Returns the CLIP that ``model.text`` means beside ``model.name`` and ``model.weights``.

    Raises ConfigError with the key to set where that is not clear, or where open_clip does not know it.
    """
    clip = open_clip()
    known = _candidates(network, weights, text.name)
    name = text.name or _only([name for name, _ in known], "name", network, weights)
    config = clip.get_model_config(name) if name in clip.list_models() else None
    if config is None:
        raise ConfigError(
            f"model.text.name={name} is no CLIP of the installed open_clip.{nearest(name, clip.list_models())}"
        )
    _refuse_foreign(name, config)
    quick = bool(config.get("quick_gelu"))
    if text.weights is not None and not is_tag(text.weights):
        return TextClip(name, quick, text.weights, None)
    tags = clip.list_pretrained_tags_by_model(name)
    of_file = weights is not None and not is_tag(weights) and weights not in NO_TAG
    tag = text.weights or _only([] if of_file else [tag for _, tag in known], "weights", network, weights)
    if tag not in tags:
        raise ConfigError(
            f"model.text.weights={tag}: open_clip has no such weights of {name}.{nearest(tag, tags)} Known: "
            f"{', '.join(tags) or 'none'}."
        )
    found = clip.get_pretrained_cfg(name, tag)
    return TextClip(name, quick or bool(found.get("quick_gelu")), tag, _published(name, tag, found))


def _candidates(network: str, weights: str | None, name: str | None) -> list[tuple[str, str]]:
    """Returns names and tags of open_clip with the weights of timm's network; of name ``name`` where one is given.

    Without a name they are those whose activation is the one that the weights were trained with.
    """
    clip = open_clip()
    repository = str(pretrained_config(network, weights).get("hf_hub_id") or "").partition("@")[0]
    if repository in _MOVED:
        return [_MOVED[repository]] if name in (None, _MOVED[repository][0]) else []
    found = []
    for each, tag in clip.list_pretrained():
        published = clip.get_pretrained_cfg(each, tag)
        if not repository or published.get("hf_hub", "").rpartition("/")[0] != repository:
            continue
        quick = bool(clip.get_model_config(each).get("quick_gelu"))
        if each == name or (name is None and quick == bool(published.get("quick_gelu"))):
            found.append((each, tag))
    return found


def _only(found: Sequence[str], key: str, network: str, weights: str | None) -> str:
    """Returns the only value in ``found``. Raises ConfigError that says which key decides where there is none, or several."""
    if len(set(found)) == 1:
        return found[0]
    example = "ViT-B-16-quickgelu" if key == "name" else "openai, or a file"
    several = f"is {' or '.join(dict.fromkeys(found))}" if found else "is not known"
    raise ConfigError(
        f"model.head_init={TEXT}: which text encoder belongs to model.name={network} with model.weights={weights} {several}. "
        f"Set model.text.{key}, such as {example}."
    )


def _refuse_foreign(name: str, config: Mapping[str, Any]) -> None:
    text = config["text_cfg"]
    if "multimodal_cfg" in config or text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise ConfigError(
            f"model.text.name={name} has a text encoder or tokenizer that is not open_clip's own, which is not supported. "
            "Choose another CLIP, or set model.head_init=class_means."
        )


def _published(name: str, tag: str, found: Mapping[str, Any]) -> Published:
    repository, _, file = str(found.get("hf_hub") or "").rpartition("/")
    url = str(found.get("url") or "")
    safe = f"{file.removesuffix('.bin')}.safetensors" if file.endswith(".bin") else file
    files = (tuple(dict.fromkeys((safe, file))) if file else _FILES) if repository else (url.rpartition("/")[2],)
    return Published(f"{name}.{tag}", repository, None, files, url)


@torch.no_grad()
def text_features(clip: TextClip, tensors: Mapping[str, Any], prompts: Sequence[str], device: torch.device) -> Tensor:
    """Returns the text features [C, d] of the prompts, float32 rows of length 1 on the CPU.

    ``tensors`` are the content of the file of the CLIP. Raises CheckpointError where they do not hold its text encoder.
    """
    net = _encoder(clip)
    _load(net, clip, tensors)
    net.to(device).eval()
    tokens = open_clip().get_tokenizer(clip.name)(list(prompts))
    found = [net.encode_text(part.to(device)).float().cpu() for part in tokens.split(AT_ONCE)]
    return F.normalize(torch.cat(found), dim=1)


def _encoder(clip: TextClip) -> Any:
    """Returns a CLIP of drawn weights with the real text encoder."""
    config = open_clip().get_model_config(clip.name)
    kind = open_clip().CustomTextCLIP if config.pop("custom_text", False) else open_clip().CLIP
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and must not use up numbers
        return kind(**{**config, "vision_cfg": _NO_IMAGES, "quick_gelu": clip.quick_gelu})


def _load(net: nn.Module, clip: TextClip, tensors: Mapping[str, Any]) -> None:
    state = unwrapped(tensors)
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        from open_clip.model import convert_to_custom_text_state_dict  # files from before it had a module of its own

        state = convert_to_custom_text_state_dict(state)
    own = {name: value for name, value in net.state_dict().items() if not name.startswith(("visual.", "logit_"))}
    wrong = [
        f"{name}: {tuple(getattr(state.get(name), 'shape', ())) or 'nothing'} there, {tuple(value.shape)} expected"
        for name, value in own.items()
        if getattr(state.get(name), "shape", None) != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f"model.text.weights={clip.weights} does not hold the text encoder of {clip.name} ({'; '.join(wrong[:3])}; "
            f"{len(wrong)} in all). Use the file of the whole CLIP that model.text.name names."
        )
    if bad := next((name for name in own if not state[name].isfinite().all()), ""):
        raise CheckpointError(f"model.text.weights={clip.weights} holds numbers that are not finite ({bad}).")
    net.load_state_dict({name: state[name] for name in own}, strict=False)


def unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors of a file by their names in the network, without what trainings put around them."""
    inner = tensors.get("state_dict", tensors)
    return {name.removeprefix("module."): value for name, value in inner.items()}


def image_projection(tensors: Mapping[str, Any]) -> Tensor | None:
    """Returns the projection [d, D] of the image encoder in a file of the whole CLIP; None where it has none."""
    state = unwrapped(tensors)
    if "visual.proj" in state:
        return state["visual.proj"].T
    return state.get("visual.head.proj.weight")
