"""Which training images come in an epoch, and how often: what sampling by class and the terms of the objective ask for."""

from __future__ import annotations

import torch

from ltcore import dist
from ltcore.config.schema import RunConfig
from ltcore.data.loading.class_sampling import CLASS_AWARE, NATURAL, SAMPLINGS, class_copies, class_shares
from ltcore.data.loading.loader import Loader
from ltcore.data.loading.plugged_sampling import copies_of, epoch_samples, plan_of, shares_of
from ltcore.data.loading.sampler import Copies, drawn_copies
from ltcore.objective.objective import Objective
from ltcore.objective.stage2.sampler import class_aware_rows


def plan_epoch(cfg: RunConfig, loader: Loader, objective: Objective, epoch: int, device: torch.device) -> None:
    """Sets how often the training samples come in an epoch (``Loader.copies_N``), or in which order (``Loader.order_L``).

    It is the same on all ranks. Tells the objective the class shares, where they are sampled. A collective.
    """
    split = cfg.data.train_split
    if SAMPLINGS[cfg.train.sampling].plan is not None:
        _plan_plugged(cfg, loader, objective, epoch, device)
        return
    shares_C = class_shares(cfg.train.sampling, loader.store.manifest.class_counts[split], epoch, cfg.train.epochs)
    objective.sample_classes(None if shares_C is None else torch.from_numpy(shares_C))
    progress = epoch / cfg.train.epochs  # of its start, also where a resumed run is further on
    if cfg.train.sampling == NATURAL and not objective.may_draw(progress):
        loader.copies_N = None  # the usual case, in which nobody needs the labels of all images
        return
    labels_N = loader.store.labels(split)
    if cfg.train.sampling == CLASS_AWARE:
        rows_L = class_aware_rows(
            torch.tensor(labels_N), seed=cfg.seed, epoch=epoch, per_class=cfg.train.images_per_class, max_passes=1.0
        )
        loader.order_L = rows_L.numpy()
        return
    copies_N: Copies | None
    if shares_C is not None:
        copies_N = class_copies(labels_N, shares_C, cfg.seed, epoch)
    else:
        draws_N = objective.draws_N(progress, torch.tensor(labels_N, device=device))
        copies_N = None if draws_N is None else drawn_copies(draws_N.double().cpu().numpy(), cfg.seed, epoch)
    loader.copies_N = None if copies_N is None else _of_rank_0(copies_N, device)


def _plan_plugged(cfg: RunConfig, loader: Loader, objective: Objective, epoch: int, device: torch.device) -> None:
    """Sets what the sampler of a plugin answers, and tells the objective the class shares."""
    split, sampling = cfg.data.train_split, cfg.train.sampling
    labels_N, attributes_N = loader.store.labels(split), loader.store.attributes(split)
    num_classes = len(loader.store.manifest.classes)
    samples = epoch_samples(sampling, labels_N, attributes_N, num_classes, cfg.seed, epoch, cfg.train.epochs)
    own = torch.from_numpy(plan_of(sampling, samples, cfg.train.sampling_options)).to(device)
    plan_N = dist.broadcast_(own).cpu().numpy()  # other machines may round differently
    if SAMPLINGS[sampling].order:
        loader.order_L, shares_C = plan_N, shares_of(plan_N, samples)
    else:
        loader.copies_N, shares_C = copies_of(plan_N, samples, cfg.seed)
    objective.sample_classes(torch.from_numpy(shares_C))


def _of_rank_0(copies_N: Copies, device: torch.device) -> Copies:
    copies: Copies = dist.broadcast_(torch.from_numpy(copies_N).to(device)).cpu().numpy()
    return copies
