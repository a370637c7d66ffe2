"""What every network promises."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ltcore.contracts.expect import expect
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.registry import MODELS

NEEDS = frozenset({"fmap", "query"})


def build(name: str, **fields: object) -> tuple[LongTailNet, torch.Tensor]:
    """Builds a network for 12 classes, and a batch of 4 images."""
    net = LongTailNet(ModelConfig(name=name, **fields), 12, NEEDS, seed=0)  # type: ignore[arg-type]
    size = max(32, net.backbone.min_px)
    return net, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def shapes_and_gradients(name: str) -> None:
    """Tells whether outputs have their shapes, features are pooled maps, and every parameter gets a finite gradient."""
    net, images = build(name, ghost_batch=2)
    out = net(images)
    expect(out.logits_BC.shape == (4, 12), f"logits are {tuple(out.logits_BC.shape)}, expected (4, 12)")
    expect(out.features_BD.shape == (4, net.feature_dim), f"features are {tuple(out.features_BD.shape)}")
    expect(out.fmap_BDhw.shape[:2] == (4, net.feature_dim), f"the feature map is {tuple(out.fmap_BDhw.shape)}")
    torch.testing.assert_close(out.fmap_BDhw.mean((2, 3)), out.features_BD)
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    ((out.logits_BC * weights).sum() + out.query_Bd[:, 0].sum()).backward()
    for key, parameter in net.named_parameters():
        expect(parameter.grad is not None, f"{key} gets no gradient")
        assert parameter.grad is not None
        expect(bool(parameter.grad.isfinite().all()), f"the gradient of {key} is not finite")
        # a linear bias before a batch norm has no effect on the loss: its gradient is rounding noise or zero
        zero = parameter.grad.abs().max() == 0 and key != "projection.layers.linear0.bias"
        expect(not zero, f"the gradient of {key} is zero")


def half_precision(name: str) -> None:
    """Tells whether autocast to bfloat16 gives finite float32 logits."""
    net, images = build(name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images)
    expect(out.logits_BC.dtype == torch.float32, f"logits are {out.logits_BC.dtype}")
    expect(bool(out.logits_BC.isfinite().all()), "a logit is not finite")


def images_do_not_see_each_other(name: str) -> None:
    """Tells whether evaluation gives an image the same logits alone and in a batch."""
    net, images = build(name)
    net.eval()
    with torch.no_grad():
        together = net(images).logits_BC
        exclusive = torch.cat([net(image[None]).logits_BC for image in images[:2]])
    torch.testing.assert_close(together[:2], exclusive, rtol=1e-4, atol=1e-4)


def one_seed_gives_one_network(name: str) -> None:
    """Tells whether the seed alone draws the parameters, whatever state torch's generator has."""
    torch_state = torch.get_rng_state()
    try:
        first, images = build(name)
        torch.manual_seed(1)
        second, _ = build(name)
    finally:
        torch.set_rng_state(torch_state)
    for (key, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        expect(torch.equal(a, b), f"{key} is drawn by torch's own generator")
    expect(torch.equal(first.eval()(images).logits_BC, second.eval()(images).logits_BC), "logits differ")


def stages_are_as_named(name: str) -> None:
    """Tells whether stages have the names of the row and the sizes told, and asking for them changes no other output."""
    for experts in (1, 2):
        net, images = build(name, num_experts=experts)
        stages = MODELS[name].stages
        expect(tuple(net.stage_dims) == stages, f"stage_dims names {tuple(net.stage_dims)}, the row {stages}")
        plain = net.eval()(images)
        net.needs = NEEDS | frozenset(stages)
        out = net(images)
        expect(torch.equal(out.logits_BC, plain.logits_BC), "asking for stages changes the logits")
        for stage, features_BD in (out.stage_features_BD or {}).items():
            size = (4, net.stage_dims[stage])
            expect(features_BD.shape == size, f"{stage} is {tuple(features_BD.shape)}, told were {size}")


CONTRACTS: tuple[Callable[[str], None], ...] = (
    shapes_and_gradients,
    half_precision,
    images_do_not_see_each_other,
    one_seed_gives_one_network,
    stages_are_as_named,
)
