"""The size of the largest tensor that a piece of code creates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    """Observes every operation below autograd, including those of a backward pass on the CPU."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def largest_tensor(call: Callable[[], object]) -> int:
    """Returns the largest number of elements among the results of all operations of ``call``, views included."""
    with _Largest() as seen:
        call()
    return seen.numbers
