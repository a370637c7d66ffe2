from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltcore.errors import ConfigError
from ltcore.models.heads import CosineHead, Projection, TdeConfig, TdeHead, unit
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


def test_projection_without_batch_norm() -> None:
    projection = Projection(8, 4, 2, None)
    assert [type(m).__name__ for m in projection.layers] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def tde(weight: list[list[float]], mean: list[float], **options: float) -> TdeHead:
    weight_CD = torch.tensor(weight, dtype=torch.float64)
    head = TdeHead(weight_CD.shape[1], len(weight), 16.0, TdeConfig(**options)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        head.weight.copy_(weight_CD)
        head.running_mean.copy_(torch.tensor(mean, dtype=torch.float64))
    return head


def trained(head: TdeHead, z: Tensor) -> Tensor:
    """Logits of training; the mean stays as it was."""
    mean = head.running_mean.clone()
    logits = head.train()(z)
    head.running_mean.copy_(mean)
    return logits


def test_tde_closed_form_values() -> None:
    """z = (3, 4) and mean (1, 0): of w = (0, 2) nothing is taken out, of (2, 0) alpha times the cosine 0.6."""
    head, z = tde([[0, 2], [2, 0]], [1, 0], parts=1, alpha=1.5), torch.tensor([[3, 4]], dtype=torch.float64)
    expected = [[12.603077, 9.452308]]
    torch.testing.assert_close(trained(head, z).tolist(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(head.eval()(z).tolist(), [[12.603077, -4.726154]], rtol=0, atol=1e-6)
    torch.testing.assert_close(head(10 * z), head(z))
    for plain in (tde([[0, 2], [2, 0]], [1, 0], parts=1, alpha=0), tde([[0, 2], [2, 0]], [0, 0], parts=1)):
        torch.testing.assert_close(plain.eval()(z).tolist(), expected, rtol=0, atol=1e-6)


def test_tde_against_a_loop_over_parts() -> None:
    gen = torch.Generator().manual_seed(0)
    z, weight, mean = (torch.randn(*shape, generator=gen, dtype=torch.float64) for shape in ((5, 6), (3, 6), (6,)))
    head = tde(weight.tolist(), mean.tolist(), parts=3, gamma=0.25, alpha=0.7)
    train_BC, test_BC = torch.zeros(5, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    for k in range(3):
        of_part = slice(2 * k, 2 * k + 2)
        direction = mean[of_part] / mean[of_part].norm()
        for b in range(5):
            u = z[b, of_part] / z[b, of_part].norm()
            left = u - 0.7 * (u @ direction) * direction
            for c in range(3):
                w = weight[c, of_part] / (weight[c, of_part].norm() + 0.25)
                train_BC[b, c] += 16 / 3 * (u @ w)
                test_BC[b, c] += 16 / 3 * (left @ w)
    torch.testing.assert_close(trained(head, z).detach(), train_BC)
    torch.testing.assert_close(head.eval()(z).detach(), test_BC)


def test_tde_mean_moves_in_training_alone() -> None:
    head, z = tde([[1, 0]], [0, 0], decay=0.9), torch.tensor([[1, 2], [3, 4]], dtype=torch.float64)
    for step in (1, 2, 3):
        head(z)
        torch.testing.assert_close(head.running_mean, (1 - 0.9**step) * z.mean(0))
    before = head.running_mean.clone()
    head.eval()(z)
    assert torch.equal(head.running_mean, before) and "running_mean" in head.state_dict()


@pytest.mark.parametrize("training", [True, False])
def test_tde_gradient(training: bool) -> None:
    head = tde([[1, 2, -1, 0.5], [0, 1, 3, -2]], [1, 0, 2, 1]).train(training)
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (z,))
    zero = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    logits = head(zero)
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros_like(logits))
    assert zero.grad is not None and zero.grad.isfinite().all()
    assert head.weight.grad is not None and head.weight.grad.isfinite().all()


def test_tde_refuses_parts_that_do_not_divide_the_features() -> None:
    with pytest.raises(ConfigError, match=r"^model\.tde\.parts=3 does not divide the 64 features of this network\."):
        TdeHead(64, 10, 16.0, TdeConfig(parts=3))
    with pytest.raises(ValueError, match=r"^decay must be"):
        TdeConfig(decay=1.0)
