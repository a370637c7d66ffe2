"""What a sweep writes down about the part of a GPU that each of its runs takes."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.config.json_record import JsonRecord


@dataclass(frozen=True, kw_only=True)
class Occupancy(JsonRecord):
    """How much of a whole GPU training steps took, and what the node has beside it."""

    device: str
    """Name of the GPU."""
    run: str
    """Which of the sweep's runs was measured, as the one that needs most memory: in what it differs from the recipe."""
    peak_bytes: int
    """Most memory of the process on the GPU, with what CUDA itself takes."""
    device_bytes: int
    busy: float | None = None
    """Share of the time of a step in which a kernel ran, in [0, 1]; None where kernels could not be timed."""
    cpus: float
    """CPUs of the node."""
    gpus: float
    """GPUs of the node."""


@dataclass(frozen=True, kw_only=True)
class GpuShare(JsonRecord):
    """What each run of a sweep takes of a GPU, and why."""

    gpus: float
    """GPUs of each worker; below 1 a part of one."""
    why: str
    """In words."""
    auto: bool
    """Whether it was chosen here; False: given by ``--gpus-per-worker``."""
    measured: Occupancy | None = None
    """What the choice rests on; None where nothing was measured."""

    @property
    def text(self) -> str:
        """Returns the choice and its reason in one line."""
        return f"{self.gpus:.4g} GPU per run: {self.why}"
