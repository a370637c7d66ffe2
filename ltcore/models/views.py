"""A network's output for several views of each image."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from torch import Tensor, nn

from ltcore.batch import ModelOutput


def over_views(net: nn.Module, images_VBCHW: Tensor) -> ModelOutput:
    """Returns the output for the first view, with the mean of the logits of all views.

    The mean is of the logits, as it is over experts, so that post-hoc adjustment and softmax come after it.
    """
    first, *others = (net(images_BCHW) for images_BCHW in images_VBCHW)
    if not others:
        return first
    total = reduce(lambda sum_BC, out: sum_BC + out.logits_BC, others, first.logits_BC)
    return replace(first, logits_BC=total / len(images_VBCHW))
