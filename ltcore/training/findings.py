"""What an objective has found of attributes that it was never shown."""

from __future__ import annotations

import torch

from ltcore.data.loading.loader import Loader
from ltcore.objective.objective import Objective


def findings(objective: Objective, loader: Loader, split: str, device: torch.device) -> dict[str, float]:
    """Returns '<term>/<name>' -> value for the training images, such as 'ifl/attribute_auc'; nothing without attributes.

    Equal on all ranks, as published memories are.
    """
    store = loader.store
    if not store.manifest.attributes:
        return {}
    labels_N, attributes_N = (
        torch.tensor(of_split, device=device)  # the store's are read-only
        for of_split in (store.labels(split), store.attributes(split))
    )
    return objective.findings(labels_N, attributes_N)
