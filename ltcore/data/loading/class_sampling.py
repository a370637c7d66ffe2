"""How often each training image comes in an epoch whose class shares are chosen: by class, by square root, progressively.

'class_aware' has the shares of 'class_balanced', but an order instead of numbers: images of one class come several in a row,
so that a batch has many of few classes (``Loader.order_L``, made by ``ltcore.objective.stage2.sampler``).

Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020, section 3:
class c is drawn with probability in proportion to n_c^q. 'class_balanced' is q = 0, 'square_root' q = 1/2, and
'progressive' goes in equal steps from the natural shares (q = 1) in the first epoch to equal ones in the last, as the
authors' code does (the paper's t / T would end one step before).
Differs: images are repeated a planned number of times instead of being drawn with replacement. Image i of class c comes
floor(v) or ceil(v) times, v = share_c N / n_c, each image equally often in expectation; class c comes floor or ceil of
share_c N times, and the epoch has N images, as a natural one. A pure function of (labels, shares, seed, epoch). The
copies of an image stay in its shard, so each comes in the stretches of the epoch in which that shard is read.
Cost: one sort of N numbers per epoch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ltcore.data.loading.sampler import Copies, Floats, Ints, drawn_copies, keyed_generator

NATURAL = "natural"
CLASS_AWARE = "class_aware"
BALANCED = ("class_balanced", CLASS_AWARE)
"""Samplings that show all classes equally often."""
SAMPLINGS = (NATURAL, "class_balanced", CLASS_AWARE, "square_root", "progressive")


def class_shares(sampling: str, counts_C: npt.ArrayLike, epoch: int, epochs: int) -> Floats | None:
    """Returns [C] the class shares of an epoch (from 0), with sum 1; None where they are the natural ones.

    ``counts_C`` are all above 0.
    """
    counts = np.asarray(counts_C, np.float64)
    equal_C = np.full(len(counts), 1 / len(counts))
    if sampling in BALANCED:
        return equal_C
    if sampling == "square_root":
        root_C = np.sqrt(counts)
        return root_C / root_C.sum()
    if sampling == NATURAL or epoch == 0:
        return None
    done = epoch / (epochs - 1)
    return (1 - done) * counts / counts.sum() + done * equal_C


def class_copies(labels_N: Ints, shares_C: Floats, seed: int, epoch: int) -> Copies:
    """Returns [N] how often each image comes in an epoch of N images with these class shares.

    The images lie class by class, those of a class in an order keyed by seed and epoch, and systematic sampling
    (``drawn_copies``) runs along them: so the fraction left after whole copies goes to other images every epoch, and
    to every image equally often.
    """
    counts_C = np.bincount(labels_N, minlength=len(shares_C))
    order_N = np.lexsort((keyed_generator(seed, epoch, "class copies").permutation(len(labels_N)), labels_N))
    copies_N = np.empty(len(labels_N), np.int32)
    copies_N[order_N] = drawn_copies((shares_C / counts_C)[labels_N[order_N]], seed, epoch)
    return copies_N
