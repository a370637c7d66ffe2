"""Evaluation by the nearest class mean (NCM): what the features are worth, whatever the classifier on them.

The means are those of ``stage2.method=ncm`` with cosines: of the directions of the un-augmented training images' features,
in evaluation mode, by the network that is evaluated. A run that keeps its classifier frozen, or whose classifier is biased
to large classes, is judged by them: DRO-LT's authors choose the epoch of their second stage so, on the test images.
Differs: the authors compute the means for that choice on the augmented, class-balanced stream, and on plain images only at
the end; here it is plain images throughout.
Cost: one pass over the training images per evaluation, and a second one over the evaluated images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcore.batch import ModelOutput
from ltcore.config.schema import RunConfig
from ltcore.evaluation.catalog import NCM, NCM_METRICS, VALIDATION
from ltcore.models.heads import CosineHead
from ltcore.objective.stage2.method import expert_logits
from ltcore.objective.stage2.ncm import ClassMeans
from ltcore.training.evaluate import Evaluator, Tested


def in_validation(cfg: RunConfig) -> bool:
    """Tells whether validation computes the metrics of the nearest class mean."""
    return cfg.train.ncm or cfg.train.select.removeprefix(VALIDATION) in NCM_METRICS


def in_tests(cfg: RunConfig) -> bool:
    """Tells whether tests do: also where DRO acts, which promises better features and not a better classifier."""
    return in_validation(cfg) or "dro" in cfg.objective.active_terms()


def validation(cfg: RunConfig, evaluator: Evaluator) -> dict[str, float | None]:
    """Returns the metrics of the validation split under ``catalog.NCM_METRICS``; {} where nobody asks. A collective."""
    if not in_validation(cfg):
        return {}
    return ncm_metrics(evaluator, nearest_means(cfg, evaluator), "val")


def tests(cfg: RunConfig, evaluator: Evaluator) -> dict[str, Tested]:
    """Evaluates every test split, by the classifier and, where that is asked for, by the nearest class mean.

    A collective.
    """
    found = evaluator.test()
    if found and in_tests(cfg):
        means = nearest_means(cfg, evaluator)
        for split, tested in found.items():
            tested.metrics.update(ncm_metrics(evaluator, means, split))
    return found


def nearest_means(cfg: RunConfig, evaluator: Evaluator) -> nn.ModuleList:
    """Returns cosine classifiers, one per expert, whose rows are the class means of the training images. A collective."""
    experts, num_classes = cfg.model.num_experts, len(evaluator.loader.store.manifest.classes)
    sums = ClassMeans(num_classes, experts, evaluator.net.feature_dim // experts, unit=True)
    for batch, out in evaluator.outputs(cfg.data.train_split):
        sums.add(out.features_BD, batch.labels_B)
    heads = nn.ModuleList()
    for mean_CD in sums.over_ranks(evaluator.device):
        head = CosineHead(mean_CD.shape[1], num_classes, scale=1.0)
        head.weight.data = mean_CD.float()
        heads.append(head)
    return heads.to(evaluator.device).requires_grad_(False)


@torch.no_grad()
def ncm_metrics(evaluator: Evaluator, means: nn.ModuleList, split: str) -> dict[str, float | None]:
    """Returns the metrics of ``catalog.NCM_METRICS`` for a split. A collective."""

    def classify(out: ModelOutput) -> Tensor:
        return expert_logits(means, out.features_BD.float()).mean(1)

    values = evaluator.metrics(evaluator.counts(split, classify=classify))
    return {name: values[name.removeprefix(NCM)] for name in NCM_METRICS}
