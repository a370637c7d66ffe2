"""Device, precision, threads and versions of a run. Chosen once, printed, and stored with the run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from ltcore.batch import device_index
from ltcore.config.trained_with import Hardware
from ltcore.errors import ConfigError
from ltcore.version import __version__


@dataclass(frozen=True)
class Precision:
    """Number format of convolutions; losses are always float32."""

    autocast: torch.dtype | None
    """Autocast type, or None for float32 throughout."""
    why: str
    """For the log: the type, and why it was chosen."""


def choose_precision(wish: str, device: torch.device) -> Precision:
    """Chooses the precision; ``auto`` is bf16 on a GPU or CPU with native bf16 arithmetic, else fp32.

    Emulated bf16 is many times slower. float16 is never chosen, because a step may be left out with it. Raises ConfigError
    for float16 on a CPU.
    """
    if wish == "fp32":
        return Precision(None, "fp32 (configured)")
    if wish == "bf16":
        return Precision(torch.bfloat16, "bf16 (configured)")
    if wish == "fp16":
        if device.type != "cuda":
            raise ConfigError(
                f"train.precision=fp16 is for GPUs, and this run is on the {device.type}. Set train.precision=auto, bf16 or fp32."
            )
        return Precision(torch.float16, "fp16 with a loss scaler (configured)")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16 (CUDA)")
        return Precision(None, "fp32 (GPU without native bf16; train.precision=fp16 may be faster)")
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return Precision(torch.bfloat16, "bf16 (CPU with native bf16)")
    return Precision(None, "fp32 (CPU without native bf16)")


def compute_float32_exactly(device: torch.device) -> None:
    """Makes float32 mean that on a GPU, too: by torch's default its convolutions there round their input to 10 bits (TF32).

    Matrix products do not, by default. What autocast computes in bf16 or fp16 is as fast as before. It holds for the process.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def allocated_cpus() -> int:
    """Returns the number of CPUs that this process may use: of its affinity and the quota of its cgroup the smaller."""
    import joblib  # comes with scikit-learn

    return int(joblib.cpu_count())


def wished_cpus() -> int:
    """Returns ``allocated_cpus``, or OMP_NUM_THREADS where that is smaller.

    For the process that a user started. In others the variable is no wish of the user: Ray sets it in its workers, and
    `ray submit` sets it for the script.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list names nested levels
    wish = int(first) if first.isdecimal() else 0
    return min(wish or allocated_cpus(), allocated_cpus())


def most_memory_bytes(device: torch.device) -> int:
    """Returns the peak memory of this process: on its GPU, or resident where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CONTEXT_BYTES = 512 * 2**20
"""What CUDA takes on a GPU for each process, beside what torch's allocator reserves: 0.3 to 0.6 GB by driver and GPU."""


def limit_memory(device: torch.device, gpus: float) -> None:
    """Limits what this process may reserve of its GPU to the part ``gpus`` of it, less what CUDA takes for the process.

    So a run that needs more than its part fails itself and not the ones beside it. For a whole GPU the limit of an earlier run
    in the same process is lifted; with ``gpus=0``, where nobody has counted them, nothing is done.
    """
    if device.type != "cuda" or gpus <= 0:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total), device_index(device))


def memory_fraction(gpus: float, device_bytes: int) -> float:
    """Returns the part of a GPU's memory that torch may reserve in a process with ``gpus`` of it.

    At least half of the share is left for it, where CUDA alone would take more than the rest.
    """
    return 1.0 if gpus >= 1 else max(gpus - CONTEXT_BYTES / device_bytes, gpus / 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether a device's memory was full: for torch's allocator, or for CUDA and cuBLAS, which take some of their own."""
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def describe_hardware() -> Hardware:
    """Describes this machine, as far as the process may use it."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        cpu=_cpu_name(), cpus=allocated_cpus(), gpus=tuple(gpus), memory_bytes=memory, host=socket.gethostname()
    )


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Returns the versions of packages that determine a run's numbers or format.

    The version of a missing package is 'not installed'.
    """
    found = {"python": platform.python_version(), "torch": torch.__version__, "ltcore": __version__}
    for package in ("torchvision", "timm", "ray", "wandb"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
