"""A small CLIP of open_clip and timm's small transformer as its image encoder, of drawn weights in files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

NAME, NETWORK = "tiny-clip", "test_vit"
LENGTH = 24
"""Of a text feature; an image feature of the network has 64 numbers."""


@dataclass(frozen=True)
class Clips:
    config: Path
    """Where open_clip reads the sizes of the CLIP."""
    text: str
    image: str

    @property
    def keys(self) -> dict[str, Any]:
        """Of a run that begins at text features."""
        return {
            "model.name": f"timm:{NETWORK}",
            "model.weights": self.image,
            "model.head": "cosine",
            "model.head_init": "text",
            "model.text.name": NAME,
            "model.text.weights": self.text,
            "data.image_size": 32,
            "augment.view1": "rrc_flip",
        }


def register(config: Path) -> None:
    """Makes the CLIP known to open_clip in this process."""
    if config.stem not in open_clip.list_models():
        open_clip.add_model_config(config)


def write_clips(folder: Path, name: str = NAME, *, image: bool = True, **options: Any) -> Clips:
    """Writes the files of a CLIP and registers it; ``options`` are more of its sizes. Without ``image`` it keeps its own."""
    config = folder / f"{name}.json"
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    config.write_text(json.dumps({"embed_dim": LENGTH, "vision_cfg": vision, "text_cfg": text, **options}))
    register(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        whole = open_clip.create_model(name, load_weights=False).state_dict()
        network = timm.create_model(NETWORK, num_classes=LENGTH).state_dict()
    if image:
        whole["visual.proj"] = network["head.weight"].T.half().float()  # one of them may have been kept as halves
        save_file(network, folder / "image.safetensors")
    torch.save(whole, folder / "clip.pt")
    return Clips(config, str(folder / "clip.pt"), str(folder / "image.safetensors"))


@torch.no_grad()
def expected(clips: Clips, sentences: list[str]) -> tuple[Tensor, Tensor]:
    """Unit text features [C, d], and the unit rows [C, 64] that they give, one after the other, by open_clip's own loader."""
    net = open_clip.create_model(clips.config.stem, pretrained=clips.text).eval()
    tokenize = open_clip.get_tokenizer(clips.config.stem)
    image = timm.create_model(NETWORK, num_classes=LENGTH, checkpoint_path=clips.image)
    texts = torch.stack([net.encode_text(tokenize([sentence]))[0] for sentence in sentences])
    texts = texts / texts.norm(dim=1, keepdim=True)
    projection = image.get_parameter("head.weight")
    rows = torch.stack([torch.stack([t[k] * projection[k] for k in range(LENGTH)]).sum(0) for t in texts])
    return texts, rows / rows.norm(dim=1, keepdim=True)
