"""Where the rows of the classifier begin: drawn, at text features, or at the class means of what training starts from.

    w_c = m_c / |m_c|,    m_c the mean feature of the training images of class c        (model.head_init=class_means)

A cosine classifier then begins as the nearest class mean by angle. A linear one gets the same rows and bias 0: logits
|z| cos(m_c, z). Equal lengths matter there: a mean of few images is longer than one of many, which is no evidence for its
class.

Source: LIFT, Shi et al., "Long-tail learning with foundation model: heavy fine-tuning hurts", ICML 2024, arXiv:2309.10019,
and its code ('init_head: class_mean'): for weights of ImageNet-21k, and as the alternative to CLIP's text
features, for which see ``text_head``.
Differs: the means are those of the network that training starts from, while theirs leave the tuned modules out. Adapters
and LoRA begin as the identity, where both are the same; drawn prompts do not.
The images are their largest centered squares, as in that code, also where evaluation sees a crop of them
(``data.crop_fraction`` below 1).
Cost: one pass over the training images, as ``train.ncm`` takes for one evaluation; where evaluation sees crops, they are
decoded for it alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ltcore import dist
from ltcore.config.schema import RunConfig
from ltcore.data.loading.loader import ThreadedLoader
from ltcore.models.clip_text import TEXT
from ltcore.models.net import RANDOM
from ltcore.objective.stage2.ncm import ClassMeans
from ltcore.training.build import Components
from ltcore.training.evaluate import Evaluator
from ltcore.training.text_head import text_rows

GRID = 2.0**30
"""Features are rounded to multiples of 1 / GRID. Sums below 2^53 / GRID = 8.4 million are then exact in float64, so that
their order, and with it the number of ranks, cannot change a bit; the rounding is below that of a float32 from 0.01 on."""


def start_head(cfg: RunConfig, components: Components, evaluator: Evaluator) -> dict[str, Any]:
    """Sets the rows of the classifier to class means or text features, as ``model.head_init`` asks. A collective.

    Moving averages and key encoder start with the same rows; a second network keeps its drawn classifier. No class lacks
    images: a run begins with a check that refuses such data. Returns where text features came from, for the run's record.
    """
    if cfg.model.head_init == RANDOM:
        return {}
    net, origin = components.step.net, {}
    if cfg.model.head_init == TEXT:
        classes = evaluator.loader.store.manifest.classes
        found = text_rows(cfg.model, classes, net.feature_dim, evaluator.device) if dist.rank() == 0 else None
        rows_CD, origin = dist.broadcast_object(found)
    else:
        rows_CD = class_rows(cfg, evaluator)
    with torch.no_grad():
        for name, parameter in net.heads.named_parameters():  # of one expert: the configuration refuses several
            parameter.copy_(rows_CD) if name.endswith(".weight") else parameter.zero_()
    for copy in (components.step.key, components.average):
        if copy is not None:
            copy.net.heads.load_state_dict(net.heads.state_dict())
    return origin


def class_rows(cfg: RunConfig, evaluator: Evaluator) -> Tensor:
    """Returns float64 [C, D] unit class means of the training images, in evaluation mode and without augmentation.

    They are equal on every rank and for every number of ranks, as far as the features are. A collective.
    """
    num_classes = len(evaluator.loader.store.manifest.classes)
    sums = ClassMeans(num_classes, 1, evaluator.net.feature_dim, unit=False)
    with _of_whole_squares(evaluator) as whole:
        for batch, out in whole.outputs(cfg.data.train_split):
            sums.add((out.features_BD.double() * GRID).round() / GRID, batch.labels_B)
    (means_CD,) = sums.over_ranks(evaluator.device)
    return F.normalize(means_CD, dim=1)


@contextlib.contextmanager
def _of_whole_squares(evaluator: Evaluator) -> Iterator[Evaluator]:
    """Yields the evaluator, with a loader that cuts nothing off the largest centered square where its own does."""
    loader = evaluator.loader
    if loader.prep.framing.crop_fraction >= 1:
        yield evaluator
        return
    whole = ThreadedLoader(
        replace(loader.cfg, crop_fraction=1.0),
        loader.uri,
        batch_size=loader.batch_size,
        seed=loader.seed,
        rank=loader.rank,
        world=loader.world,
        trains=False,
    )
    with contextlib.closing(whole):
        yield replace(evaluator, loader=whole)
