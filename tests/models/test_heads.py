from __future__ import annotations

import math

import torch

from ltcore.models.heads import CosineHead, Projection, unit
from ltcore.models.norm import norm1d


def test_cosine_head_against_a_loop() -> None:
    gen = torch.Generator().manual_seed(0)
    head = CosineHead(5, 3, scale=30.0).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 5, generator=gen))
    z = torch.randn(4, 5, generator=gen, dtype=torch.float64)
    logits, weight = head(z).detach(), head.weight.detach()
    for b in range(4):
        for c in range(3):
            dot = sum(float(z[b, d] * weight[c, d]) for d in range(5))
            norms = math.sqrt(float((z[b] ** 2).sum())) * math.sqrt(float((weight[c] ** 2).sum()))
            assert abs(float(logits[b, c]) - 30 * dot / norms) < 1e-9


def test_zero_features_give_zero_logits_and_finite_gradients() -> None:
    for dtype in (torch.float32, torch.float64):
        head = CosineHead(5, 3, scale=16.0).to(dtype)
        with torch.no_grad():
            head.weight.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
        z = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
        logits = head(z)
        logits.sum().backward()
        assert torch.equal(logits, torch.zeros_like(logits))
        assert z.grad is not None and z.grad.isfinite().all()
        assert head.weight.grad is not None and head.weight.grad.isfinite().all()


def test_unit_has_length_one_in_every_dtype() -> None:
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit(x).norm(dim=1), torch.ones(6))
    torch.testing.assert_close(unit(x.double()).norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_projection_has_the_asked_number_of_hidden_layers() -> None:
    for hidden in (0, 1, 2):
        projection = Projection(8, 4, hidden, norm1d(None))
        linears = [m for m in projection.modules() if isinstance(m, torch.nn.Linear)]
        assert [tuple(m.weight.shape) for m in linears] == [(8, 8)] * hidden + [(4, 8)]
        query = projection(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
        torch.testing.assert_close(query.norm(dim=1), torch.ones(5))
