"""What every network promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore.batch import ModelOutput
from ltcore.contracts.expect import expect
from ltcore.contracts.randomness import apart
from ltcore.models.net import MAP, LongTailNet, ModelConfig
from ltcore.models.registry import can_branch, stages

NEEDS = frozenset({"fmap", "query"})
FINAL = "feature map"


def build(name: str, **fields: object) -> tuple[LongTailNet, Tensor]:
    """Builds a network for 12 classes, and a batch of 4 images."""
    net = LongTailNet(ModelConfig(name=name, **fields), 12, NEEDS, seed=0)  # type: ignore[arg-type]
    size = max(32, net.backbone.min_px)
    return net, torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def shapes_and_gradients(name: str) -> None:
    """Tells whether outputs have the sizes told, and logits and query alone give every parameter a finite gradient."""
    net, images = build(name, ghost_batch=2)
    _move_(net)
    _expect_features(net, images)
    out = net(images)
    expect(out.logits_BC.shape == (4, 12), f"logits are {tuple(out.logits_BC.shape)}, expected (4, 12)")
    _expect_map(f"the {FINAL}", out.fmap_BDhw, net.fmap_dim)
    weights = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    ((out.logits_BC * weights).sum() + out.query_Bd[:, 0].sum()).backward()
    for key, parameter in net.named_parameters():
        expect(parameter.grad is not None, f"{key} gets no gradient")
        assert parameter.grad is not None
        expect(bool(parameter.grad.isfinite().all()), f"the gradient of {key} is not finite")
        # a linear bias before a batch norm has no effect on the loss: its gradient is rounding noise or zero
        zero = parameter.grad.abs().max() == 0 and key != "projection.layers.linear0.bias"
        expect(not zero, f"the gradient of {key} is zero")


@torch.no_grad()
def _move_(net: LongTailNet) -> None:
    """Moves every parameter a little: one that begins at zero, as the last of a residual block may, hides what is before it."""
    gen = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=gen), alpha=0.01)


def _expect_features(net: LongTailNet, images: Tensor) -> None:
    """Asks the backbone alone, as classifiers of another size would raise."""
    sizes = [tuple(each.shape) for each in net.backbone.outputs(images, frozenset())[0]]
    told = [(4, net.backbone.expert_dim)] * len(net.heads)
    hint = ": a network that does not branch says so by branches=False in its decorator" if len(net.heads) > 1 else ""
    expect(sizes == told, f"features are {sizes}, told were {told}{hint}")


def _expect_map(what: str, fmap_BDhw: Tensor | None, channels: int) -> None:
    size = "missing" if fmap_BDhw is None else tuple(fmap_BDhw.shape)
    right = fmap_BDhw is not None and fmap_BDhw.dim() == 4 and fmap_BDhw.shape[:2] == (4, channels)
    expect(right, f"{what} is {size}, told was (4, {channels}, h, w)")


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


@torch.no_grad()
def training_draws_nothing(name: str) -> None:
    """Tells whether a forward pass in training depends on its images alone: checkpoints keep no state of torch's generators."""
    net, images = build(name)
    first, second = apart(lambda: net(images).logits_BC)
    expect(torch.equal(first, second), "a second forward pass of the same images gives other logits")


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


@torch.no_grad()
def outputs_depend_on_the_image(name: str) -> None:
    """Tells whether another image gives other features and maps, and the cells of a map lie as the parts of the image do."""
    net, images = build(name)
    _move_(net)
    net.eval()
    net.needs = NEEDS | {MAP + stage for stage in net.stage_dims}
    first, second = images[:2], images[2:]
    plain = _by_name(net(first))
    changes = []
    for top, left in _QUARTERS:
        mixed = first.clone()
        here = _quarter(top, images.shape[2]), _quarter(left, images.shape[3])
        mixed[:, :, here[0], here[1]] = second[:, :, here[0], here[1]]
        changes.append({what: (found - plain[what]).abs() for what, found in _by_name(net(mixed)).items()})
    for what, found in plain.items():
        each = [change[what] for change in changes]
        expect(all(bool(change.any()) for change in each), f"another image gives the same {what}")
        if found.dim() == 4 and found.shape[2:].numel() > 1:
            same = torch.equal(found, found[..., :1, :1].expand_as(found))
            expect(not same, f"the cells of the {what} are all the same")
            rows, columns = found.shape[2:]
            pooled = [F.adaptive_avg_pool2d(change.mean((0, 1))[None], 2).flatten() for change in each]
            in_place = rows == columns and _in_place(torch.stack(pooled))
            expect(in_place, f"the {rows} x {columns} cells of the {what} do not lie as the parts of a square image do")


_QUARTERS = tuple(itertools.product((0, 1), repeat=2))
"""Of an image, as (lower, right)."""


def _quarter(second: int, side: int) -> slice:
    return slice(side // 2, side) if second else slice(side // 2)


def _in_place(change_44: Tensor) -> bool:
    """Tells whether no pairing of the image's quarters with a map's fits clearly better than same with same.

    ``change_44`` is the change in each quarter of the map, by the quarter of the image that was changed. Some quarters change
    more than others, so pairings are compared by their products, in which each counts once. Clearly, because a receptive field
    larger than the image makes all nearly equal.
    """
    logs_44 = change_44.double().clamp_min(1e-30).log()
    fits = {order: float(logs_44[range(4), order].sum()) for order in itertools.permutations(range(4))}
    return max(fits.values()) < fits[0, 1, 2, 3] + math.log(2)


def _by_name(out: ModelOutput) -> dict[str, Tensor]:
    maps = {f"map of {stage}": fmap for stage, fmap in (out.stage_fmaps_BDhw or {}).items()}
    return {"features": out.features_BD, FINAL: out.fmap_BDhw, **maps}  # type: ignore[dict-item]


def stages_are_as_named(name: str) -> None:
    """Tells whether stages have the names and sizes told, and asking for them changes no other output.

    With two experts, too, unless the network is known not to branch.
    """
    for experts in (1, 2) if can_branch(name) else (1,):
        net, images = build(name, num_experts=experts)
        named = stages(name, None)
        expect(tuple(net.stage_dims) == named, f"stage_dims names {tuple(net.stage_dims)}, the row {named}")
        _expect_features(net, images)
        plain = net.eval()(images)
        net.needs = NEEDS | frozenset(named) | {MAP + stage for stage in named}
        out = net(images)
        expect(torch.equal(out.logits_BC, plain.logits_BC), "asking for stages changes the logits")
        for stage, dim in net.stage_dims.items():
            _expect_map(stage, (out.stage_fmaps_BDhw or {}).get(stage), dim)


CONTRACTS: tuple[Callable[[str], None], ...] = (
    shapes_and_gradients,
    half_precision,
    images_do_not_see_each_other,
    outputs_depend_on_the_image,
    training_draws_nothing,
    one_seed_gives_one_network,
    stages_are_as_named,
)
