"""Orders of the training samples as pure functions of (labels, seed, epoch).

Source of the class-aware order: the ClassAwareSampler of OLTR (Liu et al., CVPR 2019), used by Kang et al., GLT and
DRO-LT. Classes come in shuffled cycles, each with ``per_class`` consecutive samples from a shuffled cycle of its own.
Differs: every epoch restarts the cycles, so that its order depends on (labels, seed, epoch) only.
Cost: two sorts of about max_c n_c * C numbers per epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcore.rng import hash64, hash_tensor


def class_aware_rows(
    labels_N: Tensor, *, seed: int, epoch: int, per_class: int = 1, max_passes: float | None = None
) -> Tensor:
    """Returns int64 [L] rows in which every class is equally frequent: L = max_c n_c * C, at most ``max_passes`` * N.

    In each block of ``per_class`` * C rows, counted from the first, every class has one run of ``per_class`` rows. Over
    the epoch the numbers of draws of two samples of one class differ by at most one. Classes without a sample are left
    out. ``labels_N`` is int64 on the CPU.
    """
    classes_C, class_N, counts_C = labels_N.unique(return_inverse=True, return_counts=True)
    num_classes, most = len(classes_C), int(counts_C.max())
    length = most * num_classes
    if max_passes is not None:
        length = max(1, min(length, int(max_passes * len(labels_N))))
    num_cycles = -(-length // (per_class * num_classes))

    # The members of each class in shuffled order, repeated until the class has all its draws of the epoch: T rows
    # sorted by (class, pass over the class, key of pass and row).
    draws = num_cycles * per_class
    passes_C = (draws + counts_C - 1) // counts_C
    length_C = passes_C * counts_C
    first_C = length_C.cumsum(0) - length_C
    class_T = torch.arange(num_classes).repeat_interleave(length_C)
    place_T = torch.arange(int(length_C.sum())) - first_C[class_T]
    pass_T = place_T // counts_C[class_T]
    member_T = (counts_C.cumsum(0) - counts_C)[class_T] + place_T % counts_C[class_T]
    row_T = class_N.argsort(stable=True)[member_T]
    shuffled_T = hash_tensor(hash64(seed, epoch, "class-aware rows"), pass_T, row_T).argsort(stable=True)
    group_T = (passes_C.cumsum(0) - passes_C)[class_T] + pass_T
    row_T = row_T[shuffled_T[group_T[shuffled_T].argsort(stable=True)]]

    cycle_R, class_C = torch.arange(num_cycles), torch.arange(num_classes)
    key = hash64(seed, epoch, "class-aware classes")
    class_RC = hash_tensor(key, cycle_R[:, None], class_C[None, :]).argsort(dim=1, stable=True)
    draw_R1P = per_class * cycle_R[:, None, None] + torch.arange(per_class)
    return row_T[first_C[class_RC][:, :, None] + draw_R1P].flatten()[:length]


def shuffled_rows(num_rows: int, *, seed: int, epoch: int) -> Tensor:
    """Returns int64 [N], every row once, shuffled by seed and epoch."""
    rows_N = torch.arange(num_rows)
    return hash_tensor(hash64(seed, epoch, "rows"), rows_N).argsort(stable=True)
