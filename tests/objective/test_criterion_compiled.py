"""The criterion under torch.compile: the losses of the plain one, no breaks, and no graphs that grow with the steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.objective.criterion import Criterion
from ltcore.rng import generator

pytestmark = pytest.mark.slow

COUNTS, FEATURES, PER_EPOCH, EPOCHS = [12, 8, 4], 64, 3, 4
STEPS = PER_EPOCH * EPOCHS
LPA = {"start": 0.0, "num_attributes": 4, "queue_size": 16, "neighbors": 1, "threshold": 0.0}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "cross_entropy": ("cross_entropy", {}, 2),
    "balanced_softmax": ("balanced_softmax", {}, 2),
    "logit_adjust": ("logit_adjust", {}, 2),
    "paco": ("paco", {}, 2),
    "lpa by image": ("paco", {"lpa": LPA | {"positives": "sample", "threshold": None}}, 3),
    "paco+lpa+dro+ifl": ("paco", {"lpa": LPA, "dro": {"start": 0.0}, "ifl": {"start": 0.5, "milestones": (0.75,)}}, 5),
}
"""(base, terms, most graphs): with the first progress, with progress as a variable, where LPA has prototypes, and from
start and milestone of IFL on."""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Loop:
    """A loop of one's own over the outputs of a network, in one precision throughout."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32) -> None:
        base, terms, _ = KINDS[kind]
        queue = {"queue_size": 16} if base == "paco" else {}
        self.net = LongTailNet(ModelConfig(name="resnet8"), len(COUNTS), frozenset({"query", "fmap"}), 0).to(dtype)
        self.key = EmaCopy(self.net, 0.9)
        self.criterion = Criterion(
            base, class_counts=COUNTS, feature_dim=FEATURES, terms=terms, total_steps=STEPS, **queue
        )
        self.criterion.objective.to(dtype)
        self.loss: Any = self.criterion
        labels_N = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
        self.batches = [
            (torch.randn(2, len(part), 3, 16, 16, generator=generator(1, str(part[0]))).to(dtype), labels_N[part], part)
            for part in torch.randperm(len(labels_N), generator=generator(0, "order")).split(8)
        ]

    def loss_of(self, images_BCHW: Tensor, labels_B: Tensor, index_B: Tensor, keyed: Any) -> Tensor:
        out = self.net(images_BCHW)
        given = {"query_Bd": out.query_Bd, "key_Bd": keyed.query_Bd, "key_features_BD": keyed.features_BD}
        loss: Tensor = self.loss(
            out.logits_BC, labels_B, out.features_BD, indices_B=index_B, fmap_BDhw=keyed.fmap_BDhw, **given
        )
        return loss

    def run(self, steps: int = STEPS, accumulate: int = 1, *, graphs: list[int] | None = None) -> Tensor:
        optimizer = torch.optim.SGD([*self.net.parameters(), *self.criterion.parameters()], lr=0.01)
        losses = []
        for number in range(steps):
            (view1, view2), labels_B, index_B = self.batches[number % PER_EPOCH]
            self.key.update(self.net)
            with torch.no_grad():
                keyed = self.key.net(view2)
            optimizer.zero_grad()
            for _ in range(accumulate):
                loss = self.loss_of(view1, labels_B, index_B, keyed)
                (loss / accumulate).backward()
                losses.append(loss.detach())
            optimizer.step()
            self.criterion.step()
            if (number + 1) % PER_EPOCH == 0:
                self.criterion.epoch_end()
                if graphs is not None:
                    graphs.append(counters["stats"]["unique_graphs"])
        return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_the_losses_of_the_plain_one(kind: str) -> None:
    """To the bit, as the same kernels run; four epochs of three steps."""
    compiled, graphs = Loop(kind), []
    compiled.criterion.compile(backend="eager", fullgraph=True)
    assert torch.equal(compiled.run(graphs=graphs), Loop(kind).run())
    assert 1 <= graphs[-1] <= KINDS[kind][2]
    assert compiled.criterion.state_dict().keys() == Loop(kind).criterion.state_dict().keys()


def test_one_function_with_the_network_is_one_graph() -> None:
    kind = "balanced_softmax"
    compiled, plain, graphs = Loop(kind), Loop(kind), []
    compiled.loss_of = torch.compile(compiled.loss_of, backend="eager", fullgraph=True)  # type: ignore[method-assign]
    assert torch.equal(compiled.run(graphs=graphs), plain.run())
    assert 1 <= graphs[-1] <= KINDS[kind][2]


def test_forwards_between_two_steps_are_no_graphs_of_their_own() -> None:
    compiled, plain, graphs = Loop("paco"), Loop("paco"), []
    compiled.criterion.compile(backend="eager", fullgraph=True)
    assert torch.equal(compiled.run(6, accumulate=4, graphs=graphs), plain.run(6, accumulate=4))
    assert graphs[-1] <= KINDS["paco"][2]


def test_generated_code_differs_by_rounding_alone() -> None:
    """Within 1e-11 in float64. Of one loss, as each graph of all terms takes a compiler most of a minute."""
    compiled, plain = Loop("balanced_softmax", torch.float64), Loop("balanced_softmax", torch.float64)
    compiled.criterion.compile(fullgraph=True)
    torch.testing.assert_close(compiled.run(), plain.run(), rtol=1e-11, atol=1e-11)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
