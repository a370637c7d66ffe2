"""How often each training image comes in an epoch: what sampling by class and the terms of the objective ask for."""

from __future__ import annotations

import torch

from ltcore import dist
from ltcore.config.schema import RunConfig
from ltcore.data.loading.class_sampling import class_copies, class_shares
from ltcore.data.loading.loader import Loader
from ltcore.data.loading.sampler import Ints, drawn_copies
from ltcore.objective.objective import Objective


def epoch_copies(cfg: RunConfig, loader: Loader, objective: Objective, epoch: int, device: torch.device) -> Ints | None:
    """Returns how often each training sample comes in an epoch, the same on all ranks; None: once.

    Tells the objective the class shares, where they are sampled. A collective.
    """
    split = cfg.data.train_split
    labels_N = loader.store.labels(split)
    shares_C = class_shares(cfg.train.sampling, loader.store.manifest.class_counts[split], epoch, cfg.train.epochs)
    objective.sample_classes(None if shares_C is None else torch.from_numpy(shares_C))
    if shares_C is not None:
        copies_N = class_copies(labels_N, shares_C, cfg.seed, epoch)
    else:
        progress = epoch / cfg.train.epochs  # of its start, also where a resumed run is further on
        draws_N = objective.draws_N(progress, torch.tensor(labels_N, device=device))
        if draws_N is None:
            return None
        copies_N = drawn_copies(draws_N.double().cpu().numpy(), cfg.seed, epoch)
    return dist.broadcast_(torch.from_numpy(copies_N).to(device)).cpu().numpy()
