"""One pair of gloo ranks for all contract tests: starting processes costs more than what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ltcore.contracts import harness
from tests.ddp import run_ranks

RESTORED = ("term", "ifl")
"""The row whose memories one rank saves and two ranks load: the loading itself is common to all."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors of a dozen rows are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_a_rank(saved: dict[str, harness.State]) -> dict[str, Any]:
    """Per row: loss, gradients and published memories after a filled toy run; the same of mixed images where the row takes
    them; memories in the middle of an epoch; and the memories that continue from those one rank saved."""
    found: dict[str, Any] = {"runs": {}, "mixed": {}, "partly": {}}
    for row in harness.ROWS:
        objective = harness.fill(harness.build_row(*row))
        result = harness.run(objective, harness.my_rows(harness.ragged()))
        memories = {name: memory.published() for name, memory in objective.memories().items()}
        found["runs"]["-".join(row)] = vars(result) | {"memories": memories}
        if harness.takes_mixtures(row):
            found["mixed"]["-".join(row)] = vars(harness.run_mixed(objective, harness.my_rows(harness.ragged())))
        partly = harness.partly_filled(row).memories()
        found["partly"]["-".join(row)] = {name: list(harness.copies(memory)) for name, memory in partly.items()}
    restored = harness.build_row(*RESTORED)
    for name, memory in restored.memories().items():
        memory.load(saved[name][0], [saved[name][1]])
    restored.merge(0.95)
    found["restored"] = {name: memory.published() for name, memory in restored.memories().items()}
    return found


@pytest.fixture(scope="session")
def one_rank_restored() -> tuple[dict[str, harness.State], dict[str, dict[str, Tensor]]]:
    """State of RESTORED's memories in the middle of an epoch, and what they publish at its end."""
    alone = harness.partly_filled(RESTORED)
    saved = {name: harness.copies(memory) for name, memory in alone.memories().items()}
    alone.merge(0.95)
    return saved, {name: memory.published() for name, memory in alone.memories().items()}


@pytest.fixture(scope="session")
def two_ranks(one_rank_restored: tuple[dict[str, harness.State], Any]) -> list[dict[str, Any]]:
    """What ``on_a_rank`` returns on each of two ranks."""
    return run_ranks(on_a_rank, 2, one_rank_restored[0])
