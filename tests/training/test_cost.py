"""What --dry-run tells: operations, memory and bytes, against numbers counted by hand."""

from __future__ import annotations

import dataclasses

import torch

from ltcore.data.shards.manifest import read_manifest
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.training.cost import cost, dry_run_text, forward_flops
from tests.training.runs import TERMS, tiny_run

RESNET32_MACS = 68_868_352
"""Of one image of 32 px with 100 classes, as published; 470,004 parameters."""


def test_operations_are_two_for_each_multiply_add() -> None:
    net = LongTailNet(ModelConfig(name="resnet32"), 100, frozenset(), seed=0).train()
    assert forward_flops(net, 32) == 2 * RESNET32_MACS
    assert net.training and all(buffer.eq(0).all() for name, buffer in net.named_buffers() if "tracked" in name)


def test_training_counts_three_forwards_and_a_key_encoder_one_more(tiny_shards: str) -> None:
    manifest = read_manifest(tiny_shards)
    manifest = dataclasses.replace(manifest, classes=tuple(map(str, range(100))), shot_groups=("many",) * 100)
    manifest = dataclasses.replace(manifest, class_counts={"train": (1,) * 100})
    cfg = tiny_run().replace({"model.name": "resnet32", "data.image_size": 32})
    plain = cost(cfg, manifest, 10**9)
    assert f"3 forwards per image with its training make {3 * 2 * RESNET32_MACS * 10**9:.2g} FLOP" in plain[0]
    assert f"{3 * 4 * 470_004 / 2**20:.1f} MiB of weights, gradients and optimizer" in plain[1]
    keyed = cost(cfg.replace({"objective.base": "paco"}), manifest, 10**9)
    assert "0.5 million parameters" in keyed[0] and "; 4 forwards per image" in keyed[0]
    assert keyed[2].endswith(". 2 views of each image.")


def test_one_view_may_have_a_key_encoder(tiny_shards: str) -> None:
    plain, keyed = (
        cost(tiny_run().replace(terms), read_manifest(tiny_shards), 100)
        for terms in ({}, {**TERMS, "objective.terms.lpa.views": 1})
    )
    assert "; 3 forwards per image" in plain[0] and "; 4 forwards per image" in keyed[0]
    assert plain[2].endswith(". 1 view of each image.") and keyed[2] == plain[2]


def test_memory_and_bytes(tiny_shards: str) -> None:
    terms = tiny_run().replace({**TERMS, "objective.terms.lpa.reservoir_per_class": 1000})
    line = cost(terms, read_manifest(tiny_shards), 100)[1]
    reservoir = 4 * 1000 * (64 * 4 + 16)  # classes * vectors * (floats and their key and label)
    assert abs(float(line.split(" and ")[-1].split(" MiB")[0]) - reservoir / 2**20) < 0.1
    large = tiny_run().replace({"augment.view1": "rrc_flip", "augment.crop_from": "original", "data.image_size": 224})
    text = dry_run_text(large, tiny_shards)
    assert "1 view of each image, cropped from the originals while reading." in text
    assert f"decoded images take {46 * 3 * 224**2 / 2**20:.1f} MiB" in text
    assert "originals" not in dry_run_text(tiny_run(), tiny_shards)


def test_nothing_is_drawn_from_the_global_generator(tiny_shards: str) -> None:
    before = torch.get_rng_state()
    dry_run_text(tiny_run(), tiny_shards)
    assert torch.equal(before, torch.get_rng_state())
