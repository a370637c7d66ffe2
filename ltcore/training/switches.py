"""Torch's global switches on which numbers depend: read, and put back after code of others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Switch:
    """One switch, under the name by which a person finds it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]

    def value(self) -> Any:
        """Returns its value; None where torch refuses to say it, as it does after both of its interfaces to TF32 were used."""
        try:
            return self.read()
        except RuntimeError:
            return None


def _attribute(path: str, name: str) -> Switch:
    owner: Any = torch.backends
    for part in path.split(".") if path else ():
        owner = getattr(owner, part)
    label = ".".join(filter(None, ("torch.backends", path, name)))
    return Switch(label, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_grad(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


_PRECISION = "fp32_precision"
SWITCHES = (
    Switch("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Switch("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("torch.set_grad_enabled", torch.is_grad_enabled, _set_grad),
    Switch(
        "torch.use_deterministic_algorithms",
        _deterministic,
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    *(_attribute("cudnn", name) for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")),
    _attribute("mkldnn", "enabled"),
    *(
        Switch(
            f"torch.backends.cuda.enable_{kind}_sdp",
            getattr(torch.backends.cuda, f"{kind}_sdp_enabled"),
            getattr(torch.backends.cuda, f"enable_{kind}_sdp"),
        )
        for kind in ("flash", "mem_efficient", "math", "cudnn")
    ),
    *(_attribute("cuda.matmul", f"allow_{kind}_reduced_precision_reduction") for kind in ("fp16", "bf16")),
    # The older interface to TF32 comes first: it writes what the newer one reads.
    Switch(
        "torch.set_float32_matmul_precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    _attribute("cuda.matmul", "allow_tf32"),
    _attribute("cudnn", "allow_tf32"),
    _attribute("", _PRECISION),
    *(
        _attribute(path, _PRECISION)
        for path in ("cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv")
    ),
)


@contextlib.contextmanager
def put_back(changed: Callable[[list[str]], None]) -> Iterator[None]:
    """Puts every switch back afterwards, and calls ``changed`` with the names of those that were not as before, if any."""
    before = {switch.name: switch.value() for switch in SWITCHES}
    try:
        yield
    finally:
        others = [switch.name for switch in SWITCHES if switch.value() != before[switch.name]]
        if others:
            for switch in SWITCHES:  # also those that only follow from another one
                if before[switch.name] is not None and switch.value() != before[switch.name]:
                    switch.write(before[switch.name])
            changed(others)
