from __future__ import annotations

import pytest
import torch
from torch import nn

from ltcore.models.ema import EmaCopy


def small(value: float = 0.0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


def test_parameters_follow_the_closed_form() -> None:
    ema = EmaCopy(small(0.0).double(), decay=0.9)
    target = small(1.0).double()
    for _ in range(5):
        ema.update(target)
    for parameter in ema.net.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1 - 0.9**5))


def test_decay_one_never_moves_and_decay_zero_copies() -> None:
    still, copying, target = EmaCopy(small(0.0), 1.0), EmaCopy(small(0.0), 0.0), small(0.3)
    still.update(target)
    copying.update(target)
    assert all(torch.equal(p, torch.zeros_like(p)) for p in still.net.parameters())
    assert all(torch.equal(p, q) for p, q in zip(copying.net.parameters(), target.parameters(), strict=True))


def test_own_buffers_come_from_its_own_forward() -> None:
    net = small(1.0)
    ema = EmaCopy(net, 0.5)
    net(torch.randn(4, 3) + 5)
    before = ema.net[1].running_mean.clone()
    ema.update(net)
    assert torch.equal(ema.net[1].running_mean, before)
    assert ema.net.training
    ema.net(torch.full((4, 3), 2.0))
    assert not torch.equal(ema.net[1].running_mean, before)


def test_copied_buffers_are_those_of_the_trained_net() -> None:
    net = small(1.0)
    ema = EmaCopy(net, 0.5, buffers="copy")
    net(torch.randn(4, 3) + 5)
    ema.update(net)
    assert not ema.net.training
    for mine, theirs in zip(ema.net.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_is_a_copy_without_gradients() -> None:
    net = small(1.0)
    ema = EmaCopy(net, 0.5)
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in ema.net.parameters())
    assert not any(p.data_ptr() == q.data_ptr() for p, q in zip(ema.net.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_repeating_gives_the_same_bits(decay: float) -> None:
    def run() -> list[torch.Tensor]:
        gen = torch.Generator().manual_seed(0)
        net = small(0.5)
        ema = EmaCopy(net, decay)
        for _ in range(4):
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=gen))
            ema.update(net)
        return list(ema.net.parameters())

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
