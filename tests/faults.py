"""Places and moments in which writing fails as it does in life: files that cannot grow, folders that cannot be written."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Every write of this process beyond ``size`` bytes of a file fails (EFBIG), also without being root.

    To the program it is a full disk: an OSError in the middle of a file. Python ignores the signal that comes with it.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def file_system(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own at the new ``folder``. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def full_disk(folder: Path, size: int) -> Iterator[Path]:
    """The new ``folder``, in which no more than about ``size`` bytes fit: a mounted one for root, else a limit on files."""
    if os.geteuid() == 0:
        with file_system(folder, f"size={size}") as mounted:
            yield mounted
    else:
        folder.mkdir()
        with files_no_larger_than(size):
            yield folder


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[Path]:
    """The new ``folder``, in which nothing can be made: mounted read-only for root, who ignores permissions, else 0555."""
    if os.geteuid() == 0:
        with file_system(folder, "ro") as mounted:
            yield mounted
    else:
        folder.mkdir(mode=0o555)
        yield folder
