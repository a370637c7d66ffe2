"""What the loop notes about its steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltcore import dist
from ltcore.training.monitor import MeanMetrics

CPU = torch.device("cpu")


def test_means_are_over_the_steps_in_which_a_part_was_there() -> None:
    means = MeanMetrics({}, {}, CPU)
    for step in range(4):
        means.add({"loss": torch.tensor(float(step))} | ({"dro": torch.tensor(2.0)} if step else {}))
    assert means.means() == {"loss": 1.5, "dro": 2.0}


def test_an_interrupted_epoch_goes_on() -> None:
    first = MeanMetrics({}, {}, CPU)
    first.add({"loss": torch.tensor(1.0)})
    second = MeanMetrics(*first.over_ranks(), CPU)
    second.add({"loss": torch.tensor(2.0), "dro": torch.tensor(3.0)})
    assert second.means() == {"loss": 1.5, "dro": 3.0}


@pytest.mark.parametrize("saved", [{}, {"loss": 1.0}], ids=["new", "resumed"])
def test_ranks_meet_on_the_device_of_the_run(saved: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors on the host, the backend of GPUs knows nothing."""

    def all_reduce(tensor: Tensor) -> Tensor:
        assert tensor.device.type == "meta"
        return torch.ones(len(tensor))

    monkeypatch.setattr(dist, "all_reduce_sum_", all_reduce)
    means = MeanMetrics(saved, dict.fromkeys(saved, 1), torch.device("meta"))
    means.add({"loss": torch.zeros((), device="meta")})
    assert means.over_ranks() == ({"loss": 1.0}, {"loss": 1 + len(saved)})


def test_ranks_whose_group_has_ended_do_not_go_on_alone() -> None:
    """Ray ends it in another thread while it replaces workers."""
    with dist.expecting(2):
        for question in (dist.world, dist.rank, lambda: dist.all_reduce_sum_(torch.ones(1))):
            with pytest.raises(RuntimeError, match="The process group of 2 ranks has ended"):
                question()
    assert dist.world() == 1
