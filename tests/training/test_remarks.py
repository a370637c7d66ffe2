"""What a person hears of a run whose terms begin too late."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ltcore.data.shards.manifest import read_manifest
from ltcore.training.remarks import remarks
from tests.training.runs import tiny_run

IFL, LPA = "objective.terms.ifl", "objective.terms.lpa"
LATE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"train.epochs": 2, f"{IFL}.start": 0.6, f"{IFL}.milestones": ()}, "environments .* take .*=0.5 or less"),
    ({"train.epochs": 1, f"{IFL}.start": 0.0, f"{IFL}.milestones": ()}, "environments .* take more epochs"),
    (
        {"train.epochs": 5, f"{LPA}.start": 0.81, f"{LPA}.freeze_fraction": 1.0},
        "pseudo-attributes .* last of 5, .*=0.8 or less",
    ),
    ({"train.epochs": 2, f"{IFL}.start": 0.5, f"{IFL}.milestones": ()}, ""),
    ({"train.epochs": 2, f"{IFL}.start": 0.6, f"{IFL}.milestones": (), f"{IFL}.num_envs": 1}, ""),
    ({"train.epochs": 5, f"{LPA}.start": 0.8, f"{LPA}.freeze_fraction": 1.0}, ""),
    ({"train.epochs": 2, f"{LPA}.start": 0.6, f"{LPA}.freeze_fraction": 1.0, f"{LPA}.neighbor_mass": 0.0}, ""),
    ({"train.epochs": 1}, ""),
)


@pytest.mark.parametrize(("changes", "said"), LATE)
def test_what_is_found_after_the_last_epoch_is_told(changes: dict[str, Any], said: str, tiny_shards: str) -> None:
    cfg = tiny_run().replace({IFL: None, LPA: None, "objective.terms.dro": None, "model.key_decay": "auto", **changes})
    found = remarks(cfg, read_manifest(tiny_shards))
    assert len(found) == bool(said)
    assert all(re.search(said, text) for text in found), found


VIT = {"model.name": "timm:test_vit", "data.image_size": 32, "model.weights": "/x.pth"}
IDLE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"model.lora.rank": 64}, "model.lora.rank=64: no effect with model.tune=full; model.tune=lora trains so"),
    ({"train.min_delta": 0.01}, "train.min_delta=0.01: no effect without train.patience, which stops a training early"),
    ({"train.min_delta": 0.01, "train.patience": 3}, ""),
    (
        {"train.images_per_class": 2},
        "train.images_per_class=2: no effect with train.sampling=natural; train.sampling=class_aware fills batches so",
    ),
    ({"train.images_per_class": 2, "train.sampling": "class_aware", "train.batch_size": 4}, ""),
    (
        {"augment.view1": "crop", "augment.randaugment_ops": 3, "augment.randaugment_std": 0.5},
        "augment.randaugment_ops=3, augment.randaugment_std=0.5: no effect with augment.view1=crop; augment.randaugment=true ad",
    ),
    ({"augment.view1": "crop", "augment.randaugment_ops": 3, "augment.randaugment": True}, ""),
    ({"augment.view1": "crop", "augment.cutout_fraction": 0.2}, "with augment.view1=crop: nothing is erased"),
    ({"augment.view1": "crop_cutout", "augment.cutout_fraction": 0.2}, ""),
    (
        {"augment.view1": "crop", "augment.crop_schedule": "convex"},
        "augment.view1=crop: there is no random resized crop",
    ),
    ({"augment.view1": "rrc_flip", "augment.crop_schedule": "convex", "train.epochs": 2}, ""),
    (
        {"augment.view1": "rrc_flip", "augment.crop_schedule": "convex", "train.epochs": 1},
        "augment.crop_schedule=convex: no effect in a training of one epoch",
    ),
    (
        {"augment.view1": "crop", "augment.fill": 128},
        "augment.fill=128: no effect with augment.view1=crop: nothing comes in but",
    ),
    ({"augment.view1": "crop_flip_rotate15", "augment.fill": 128}, ""),
    (
        {"augment.mix_probability": 0.5},
        "augment.mix_probability=0.5: no effect without augment.mixup_alpha or augment.cutmix",
    ),
    ({"augment.cutmix_alpha": 1.0, "augment.mix_probability": 0.5, "objective.base": "cross_entropy"}, ""),
    (
        {"augment.cutmix_alpha": 1.0, "augment.cutmix_probability": 0.4},
        "unless both augment.mixup_alpha and augment.cutmix",
    ),
    ({"augment.remix_tau": 0.4}, "augment.remix_tau=0.4: no effect without augment.remix_kappa"),
    ({"model.tune": "head"}, "model.tune=head freezes a part of a backbone that was drawn at random"),
    (
        {"model.tune": "head", "model.weights": "/x.pth", "objective.terms.dro": "on"},
        "model.tune=head trains nothing in the backbone, so objective.terms.dro cannot move its features",
    ),
    ({"model.tune": "lora", "model.weights": "/x.pth", "model.lora.rank": 15, "objective.terms.dro": "on"}, ""),
    (
        {"model.tune": "lora", "model.weights": "/x.pth", "model.lora.rank": 32},
        "model.lora.rank=32 is not below the smaller dimension of 5 of 7 layers (trunk.conv1: 16 outputs, 27 inputs; "
        "trunk.layer1.0.conv1: 16 outputs, 144 inputs; trunk.layer1.0.conv2: 16 outputs, 144 inputs; ...), beside which it "
        "trains more than they have; 15 is the most that suits all of them",
    ),
    (
        {**VIT, "model.tune": "adaptformer", "model.adaptformer.bottleneck": 65},
        "model.adaptformer.bottleneck=65 is above the width of all 6 layers (net.blocks.0.mlp: width 64; ",
    ),
    ({**VIT, "model.tune": "adaptformer", "model.adaptformer.bottleneck": 64}, ""),
)


@pytest.mark.parametrize(("changes", "said"), IDLE)
def test_what_is_left_without_effect_is_told(changes: dict[str, Any], said: str, tiny_shards: str) -> None:
    off = {IFL: None, LPA: None, "objective.terms.dro": None, "model.key_decay": "auto"}
    found = remarks(tiny_run().replace({**off, **changes}), read_manifest(tiny_shards))
    assert len(found) == bool(said) and all(said in text for text in found), found
