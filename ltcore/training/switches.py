"""Torch's global switches on which numbers depend: read, and put back after code of others."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules import module


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


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None is faster, and torch's own start


def _flushes_denormals() -> bool:
    """Tells it by a division, as torch has no name to ask for."""
    return sys.float_info.min / 2 == 0


def _set_flush_denormal(flushes: bool) -> None:
    torch.set_flush_denormal(flushes)


def _hooks() -> dict[str, Any]:
    """Returns the hooks of all modules at once, by the names under which torch keeps them."""
    found = {name: value for name, value in vars(module).items() if name.startswith("_global_")}
    return {name: value.copy() if isinstance(value, dict) else value for name, value in found.items()}


def _set_hooks(hooks: dict[str, Any]) -> None:
    for name, value in hooks.items():
        if isinstance(value, dict):  # others hold it too
            kept = getattr(module, name)
            kept.clear()
            kept.update(value)
        else:
            setattr(module, name, value)


def _autocast(device: str) -> tuple[Switch, Switch]:
    return (
        Switch(
            f"torch.set_autocast_enabled({device!r})",
            lambda: torch.is_autocast_enabled(device),
            lambda value: torch.set_autocast_enabled(device, value),
        ),
        Switch(
            f"torch.set_autocast_dtype({device!r})",
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    )


_PRECISION = "fp32_precision"
SWITCHES = (
    Switch("torch.set_default_device", torch.get_default_device, _set_default_device),
    Switch("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Switch("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("torch.set_grad_enabled", torch.is_grad_enabled, _set_grad),
    Switch("torch.set_flush_denormal", _flushes_denormals, _set_flush_denormal),
    Switch("the hooks of all modules (torch.nn.modules.module)", _hooks, _set_hooks),
    *_autocast("cpu"),
    *_autocast("cuda"),
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
    _attribute("cuda.matmul", "allow_fp16_accumulation"),
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
