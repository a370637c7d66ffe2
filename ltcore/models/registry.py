"""Registry of networks by name, which ``ltcore methods`` and the contract tests read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltcore.models.backbones import BuildBackbone, cifar_resnet, torchvision_resnet
from ltcore.models.timm_backbone import stage_names, timm_backbone
from ltcore.models.timm_names import is_timm
from ltcore.plugins.generated import add_row, configured, generate, grow_if_it_has_options
from ltcore.plugins.loading import attach
from ltcore.plugins.parts import Part


@dataclass(frozen=True)
class Row:
    """A registered network."""

    build: BuildBackbone
    summary: str
    paper: str
    stages: tuple[str, ...]
    """Names of the stages before the last, whose pooled features a loss may use."""
    weights: str = ""
    """Name of the published ImageNet weights in torchvision; '' where there are none."""
    branches: bool = True
    """It builds last stages of its own for each expert, and ends in residual blocks, of which BBN takes two."""


_CIFAR_STAGES = ("stage1", "stage2")
_50_STAGES = ("stage1", "stage2", "stage3")
_CIFAR_PAPER = "He et al. 2016, arXiv:1512.03385, section 4.2 (option A shortcuts)"
_RESNET_PAPER = "He et al. 2016, arXiv:1512.03385; stride in the 3x3 convolution as in torchvision"

# A dict literal, because the linter (F601) then reports repeated names.
MODELS: dict[str, Row] = {
    "resnet8": Row(
        cifar_resnet(1),
        "CIFAR ResNet, 8 layers, 64 features: for demonstrations and tests",
        _CIFAR_PAPER,
        stages=_CIFAR_STAGES,
    ),
    "resnet20": Row(cifar_resnet(3), "CIFAR ResNet, 20 layers, 64 features", _CIFAR_PAPER, stages=_CIFAR_STAGES),
    "resnet32": Row(
        cifar_resnet(5),
        "CIFAR ResNet, 32 layers, 64 features: the long-tail standard",
        _CIFAR_PAPER,
        stages=_CIFAR_STAGES,
    ),
    "resnet56": Row(cifar_resnet(9), "CIFAR ResNet, 56 layers, 64 features", _CIFAR_PAPER, stages=_CIFAR_STAGES),
    "resnet50": Row(
        torchvision_resnet((3, 4, 6, 3)),
        "ResNet-50, 2048 features, images of 64 px or more",
        _RESNET_PAPER,
        stages=_50_STAGES,
        weights="ResNet50_Weights.IMAGENET1K_V1",
    ),
    "resnet152": Row(
        torchvision_resnet((3, 8, 36, 3)),
        "ResNet-152, 2048 features, images of 64 px or more: the standard on Places-LT",
        _RESNET_PAPER,
        stages=_50_STAGES,
        weights="ResNet152_Weights.IMAGENET1K_V1",
    ),
    "resnext50_32x4d": Row(
        torchvision_resnet((3, 4, 6, 3), groups=32, width_per_group=4),
        "ResNeXt-50 (32x4d), 2048 features, images of 64 px or more",
        "Xie et al. 2017, arXiv:1611.05431",
        stages=_50_STAGES,
        weights="ResNeXt50_32X4D_Weights.IMAGENET1K_V1",
    ),
}


def is_backbone(name: str) -> bool:
    """Tells whether a name is that of a network: of ``MODELS`` or, by 'timm:', of timm, which is not asked whether it has it."""
    return name in MODELS or is_timm(name)


if TYPE_CHECKING:  # a stand-in for the class generated below

    class ModelOptions:
        def __getattr__(self, name: str) -> Any: ...

else:
    ModelOptions = generate("ModelOptions", __name__, "Options of networks of plugins, under their names.", [])


def builder(name: str, weights: str | None, options: ModelOptions) -> BuildBackbone:
    """Returns the builder of a network of ``MODELS`` or, by 'timm:', of timm, shaped for ``weights`` but without their values."""
    if is_timm(name):
        return timm_backbone(name, weights)
    build: BuildBackbone = configured(MODELS[name].build, options, name)
    return build


def stages(name: str, weights: str | None) -> tuple[str, ...]:
    """Returns the names of the stages before the last of a network of ``MODELS`` or of timm."""
    return stage_names(name, weights) if is_timm(name) else MODELS[name].stages


def can_branch(name: str) -> bool:
    """Tells whether a network can have several experts; those of timm cannot."""
    return not is_timm(name) and MODELS[name].branches


def _add(part: Part) -> None:
    add_row(MODELS, part.kind, part.name, Row(part.build, part.summary, part.paper, **part.extra))
    grow_if_it_has_options(ModelOptions, part)


attach("model", _add)
