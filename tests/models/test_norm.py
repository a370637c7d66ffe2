from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ltcore import dist
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.models.norm import GhostBatchNorm1d, GhostBatchNorm2d, average_running_stats_, norm1d, norm2d
from tests.ddp import run_ranks


def maps(batch: int, channels: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, channels, 4, 5, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 + 1


def test_training_normalizes_each_group_on_its_own() -> None:
    norm = GhostBatchNorm2d(3, group=4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 3.0]))
    x = maps(12)
    y = norm(x)
    means, variances = torch.zeros(3).double(), torch.zeros(3).double()
    for g in range(3):
        for c in range(3):
            values = x[4 * g : 4 * g + 4, c]
            mean, variance = values.mean(), values.var(correction=0)
            expected = (values - mean) / (variance + 1e-5).sqrt() * norm.weight[c] + norm.bias[c]
            torch.testing.assert_close(y[4 * g : 4 * g + 4, c], expected)
            means[c] += mean / 3
            variances[c] += values.var(correction=1) / 3
    torch.testing.assert_close(norm.running_mean, 0.1 * means)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances)
    assert norm.num_batches_tracked == 1


def test_a_group_as_large_as_the_batch_is_batch_norm_bitwise() -> None:
    x = maps(8, dtype=torch.float32)
    ghost, plain = GhostBatchNorm2d(3, group=8), nn.BatchNorm2d(3)
    assert torch.equal(ghost(x), plain(x))
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, ghost.get_buffer(name)), name


def test_evaluation_is_batch_norm_bitwise_for_any_batch() -> None:
    ghost, plain = GhostBatchNorm2d(3, group=4), nn.BatchNorm2d(3)
    ghost(maps(8, dtype=torch.float32))
    plain.load_state_dict(ghost.state_dict())
    x = maps(7, dtype=torch.float32)
    assert torch.equal(ghost.eval()(x), plain.eval()(x))


def test_one_dimension() -> None:
    norm = GhostBatchNorm1d(3, group=2).double()
    x = maps(6)[:, :, 0, 0]
    expected = torch.cat([nn.BatchNorm1d(3).double()(part) for part in x.split(2)])
    torch.testing.assert_close(norm(x), expected)


def test_a_batch_that_the_group_does_not_divide_is_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"batch of 10 samples.*model\.ghost_batch=4"):
        GhostBatchNorm2d(3, group=4)(maps(10).float())


def test_none_is_plain_batch_norm() -> None:
    assert type(norm2d(None)(4)) is nn.BatchNorm2d
    assert type(norm1d(None)(4)) is nn.BatchNorm1d


def _three_steps(world_batches: Tensor) -> dict[str, Tensor]:
    """Running statistics after this rank's share of three global batches and one average."""
    net = LongTailNet(ModelConfig(name="resnet8", ghost_batch=4), 3, frozenset({"query"}), seed=0).double()
    for batch in world_batches:
        net(batch.chunk(dist.world())[dist.rank()])
    average_running_stats_(net)
    return dict(net.named_buffers())


def test_two_ranks_average_to_the_statistics_of_one_process() -> None:
    batches = torch.randn(3, 16, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = _three_steps(batches)
    for ours in run_ranks(_three_steps, 2, batches):
        assert ours.keys() == alone.keys()
        for name, buffer in alone.items():
            if name.endswith("num_batches_tracked"):
                assert ours[name] == buffer == 3
            else:
                torch.testing.assert_close(ours[name], buffer, rtol=1e-13, atol=1e-13)
