"""Classifiers as runs begin with them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from ltcore.config.schema import RunConfig
from ltcore.data.loading.factory import make_loader
from ltcore.training.build import build, stream_options
from ltcore.training.evaluate import Evaluator
from ltcore.training.head_init import start_head
from tests.training.runs import Rank

STILL = {"train.epochs": 1, "train.optim.lr": 1e-12, "train.optim.weight_decay": 0.0}
"""Keys of a run that ends as it began."""


def started(tree: dict[str, Any], uri: str, batch_size: int = 5) -> dict[str, torch.Tensor]:
    """The network after its classifier was set, and the class means that a plain loop finds on one rank."""
    cfg, ctx = RunConfig.from_dict(tree), Rank()
    options = {"batch_size": cfg.train.batch_size, "seed": cfg.seed, "rank": ctx.rank, "world": ctx.world}
    loader = make_loader(cfg.data, uri, **options, **stream_options(cfg))
    parts = build(cfg, loader, ctx)
    normalize = parts.augment.evaluate
    evaluator = Evaluator(
        net=parts.eval_net, loader=loader, device=ctx.device, batch_size=batch_size, normalize=normalize
    )
    drawn = {name: value.clone() for name, value in parts.step.net.state_dict().items()}
    seen = [(out.features_BD.double(), batch.labels_B) for batch, out in evaluator.outputs("train")]
    start_head(cfg, parts, evaluator)
    loader.close()
    features, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    means = torch.stack([features[labels == c].mean(0) for c in labels.unique()])
    found = {"means": F.normalize(means, dim=1).float()}
    found |= {f"net.{name}": value for name, value in parts.step.net.state_dict().items()}
    found |= {f"drawn.{name}": value for name, value in drawn.items()}
    for name, copy in (("key", parts.step.key), ("average", parts.average)):
        found |= {} if copy is None else {f"{name}.{key}": value for key, value in copy.net.state_dict().items()}
    return found
