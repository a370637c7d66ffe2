"""Recomputed activations: the same loss, gradients and running statistics, and fewer tensors kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltcore.errors import ConfigError
from ltcore.models.backbones import split_last_block
from ltcore.models.norm import norm2d
from ltcore.models.recompute import kept_running_stats, recompute_
from ltcore.models.registry import MODELS


def own(name: str, *, group: int | None = None, experts: int = 1) -> Any:
    return MODELS[name].build(norm2d(group), experts, 0.75)


def step(
    net: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor], px: int, recomputes: bool
) -> dict[str, Tensor]:
    """Loss, gradients, and buffers after one step."""
    images = torch.randn(4, 3, px, px, generator=torch.Generator().manual_seed(1))
    loss = forward(net, images).square().mean()
    with kept_running_stats(net) if recomputes else nullcontext():
        loss.backward()
    gradients = {f"grad {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **dict(net.named_buffers())}


def through(net: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([fmap.flatten(1) for fmap in net(images)], 1)


def branches(net: Any, images: Tensor) -> Tensor:
    return torch.cat([net.branch(images, number).flatten(1) for number in range(2)], 1)


def assert_same(plain: nn.Module, forward: Callable[[Any, Tensor], Tensor], px: int = 32) -> None:
    other = copy.deepcopy(plain)
    recompute_(other, "net")
    expected, found = step(plain, forward, px, False), step(other, forward, px, True)
    assert expected.keys() == found.keys() and any(name.startswith("grad") for name in found)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize(
    ("net", "forward"),
    [
        (lambda: own("resnet8"), through),
        (lambda: own("resnet20", group=2), through),
        (lambda: own("resnet8", experts=2), through),
        (lambda: split_last_block(own("resnet8")), branches),
    ],
    ids=["plain", "ghost batches", "experts", "branches"],
)
def test_own_networks_give_the_same_to_the_last_bit(
    net: Callable[[], nn.Module], forward: Callable[[Any, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    assert_same(net().train(), forward)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "convnext_atto"])
def test_networks_of_timm_do_too(name: str) -> None:
    """Of resnet10t, timm alone would count each batch twice in the running statistics."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = nn.Sequential(timm.create_model(name, num_classes=0)).train()
    assert_same(net, lambda net, images: net(images), px=160 if name == "test_vit" else 64)


def test_without_the_guard_a_batch_would_count_twice() -> None:
    torch.manual_seed(0)
    net = own("resnet8").train()
    recompute_(net, "net")
    step(net, through, 16, recomputes=False)
    assert net.trunk.layer1[0].bn1.num_batches_tracked == 2 and net.trunk.bn1.num_batches_tracked == 1


def test_buffers_are_given_back_also_after_an_error() -> None:
    net = nn.BatchNorm2d(3)
    mean = net.running_mean
    with pytest.raises(RuntimeError, match="stop"), kept_running_stats(net):
        net(torch.ones(2, 3, 4, 4))
        raise RuntimeError("stop")
    assert net.running_mean is mean and torch.equal(mean, torch.zeros(3)) and net.num_batches_tracked == 0


def test_inputs_of_blocks_alone_are_kept() -> None:
    def kept_bytes(recompute: bool) -> int:
        torch.manual_seed(0)
        net, sizes = own("resnet20").train(), []
        if recompute:
            recompute_(net, "net")

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.randn(4, 3, 32, 32))
        return sum(sizes)

    assert kept_bytes(True) < 0.35 * kept_bytes(False)


def test_a_network_that_cannot_is_refused() -> None:
    class Stubborn(nn.Module):
        def set_grad_checkpointing(self, enable: bool = True) -> None:
            assert not enable, "gradient checkpointing not supported"

    for net in (Stubborn(), nn.Sequential(Stubborn()), nn.Linear(2, 2)):
        with pytest.raises(ConfigError, match=r"^train\.grad_checkpointing=true does not go with model\.name=odd,"):
            recompute_(net, "odd")
