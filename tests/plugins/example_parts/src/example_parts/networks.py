"""A network of two convolutions."""

from __future__ import annotations

from torch import nn

from ltcore import Backbone, plugins
from ltcore.models.norm import NormFactory


@plugins.model("tiny_net", summary="two convolutions, 24 features", paper="-", stages=("stage1",))
def tiny_net(norm: NormFactory, num_experts: int, expert_width: float) -> Backbone:
    """Returns the backbone."""
    trunk = nn.Sequential()
    trunk.add_module("conv1", nn.Conv2d(3, 8, 3, 2, 1, bias=False))
    trunk.add_module("bn1", norm(8))
    trunk.add_module("layer1", nn.Sequential(nn.ReLU()))
    branches = []
    for _ in range(num_experts):
        branch = nn.Sequential()
        branch.add_module("layer2", nn.Sequential(nn.Conv2d(8, 24, 3, 2, 1, bias=False), norm(24), nn.ReLU()))
        branches.append(branch)
    return Backbone(trunk, branches, 24, {"stage1": 8}, conv_fan="fan_in", min_px=8)
