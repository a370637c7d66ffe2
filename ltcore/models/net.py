"""LongTailNet: backbone, pooling, one classifier per expert, and a projection where a loss needs one.

Every parameter is drawn from a generator keyed by the run's seed and the parameter's full name. Building a projection,
or any other additional module, therefore never changes the initial value of another parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltcore import rng
from ltcore.batch import ModelOutput
from ltcore.errors import at_least, one_of, positive, within
from ltcore.models.backbones import pool, split_last_block
from ltcore.models.clip_text import TEXT, TextConfig, check_text
from ltcore.models.heads import HEADS, CosineHead, Projection, TdeConfig, TdeHead
from ltcore.models.norm import norm1d, norm2d
from ltcore.models.registry import MODELS, ModelOptions, builder, can_branch
from ltcore.models.timm_names import PREFIX, check_name, check_tag, is_network, is_tag, is_timm
from ltcore.models.tune import (
    FULL,
    PARTIAL,
    TUNES,
    AdaptFormerConfig,
    LoraConfig,
    check_partial,
    frozen_names,
    keep_frozen_,
    tune_,
)
from ltcore.models.weights import AUTO, DEFAULT, WEIGHT_FILES
from ltcore.plugins.generated import refuse_idle
from ltcore.uris import check_uris

MAP = "fmap/"
"""Prefix of a stage name in ``needs`` that requires its feature map instead of its pooled features."""
PROJECTIONS = ("projection.", "own_projection.")
"""Name prefixes of parameters that are used in training only."""
CLASS_MEANS = "class_means"
RANDOM = "random"
HEAD_INITS = (RANDOM, CLASS_MEANS, TEXT)

MAX_EXPERTS = 64
"""Upper limit that catches mistakes and corrupted files: each expert is a network of its own."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "resnet32"
    """Backbone (``ltcore methods``), or any network of timm, 'timm:resnet50'. A tag behind it ('timm:resnet50.a1_in1k') says
    which of timm's weights ``weights`` auto and default are. Their dropout and stochastic depth are off, as what they draw would
    not be resumed."""
    weights: str | None = None
    """Initial weights of the backbone; the classifier is always drawn by ``seed``. null: drawn, too. 'auto': the published
    weights if their file is on this machine, else null; when the run starts it says which. 'default': these, or an error; of
    a network of timm they are downloaded. Or the tag of other weights of timm ('augreg_in21k'), or a file (.pth, .pt,
    .safetensors) with the names of torchvision or timm for this backbone, as an absolute path or URI."""
    head: str = "linear"
    """Classifier: 'linear' (with bias), 'cosine' or 'tde' (cosine whose evaluation leaves out what all features share)."""
    cosine_scale: float = 16.0
    """Factor on the cosines, > 0. No effect with a linear head. LDAM and RIDE use 30, TDE 16."""
    tde: TdeConfig = field(default_factory=TdeConfig)
    """Options of the classifier 'tde'."""
    head_init: str = "random"
    """Rows of the classifier at the start: 'random' (drawn by ``seed``, or those of ``train.init_from``), 'class_means', the
    mean feature of each class's training images, at length 1 and with bias 0 (LIFT): one more pass over them. The features
    are those that training starts from, so drawn ones (``weights=null`` without ``train.init_from``) give rows that say
    little. Or 'text', what CLIP's text encoder says of the names of the classes (``model.text``), for an image encoder of
    CLIP. One expert only. No effect in stage 2."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text encoder of CLIP. No effect unless ``model.head_init`` is 'text'."""
    options: ModelOptions = field(default_factory=ModelOptions)
    """Options of networks of plugins, under their names."""
    num_experts: int = 1
    """Number of classifiers, 1 to 64. From 2 on each has its own last stages of the backbone, and logits are [B, E, C].
    """
    expert_width: float = 0.75
    """Channels of an expert's own stages relative to the plain network, in (0, 1]. No effect with one expert."""
    bilateral: bool = False
    """Two last residual blocks side by side, with one classifier on the features of both, as BBN needs it and nothing else."""
    projection_dim: int = 32
    """Length d of query and key vectors, >= 1. No effect unless a loss uses a query."""
    projection_hidden: int = 1
    """Hidden layers of the projection, >= 0. No effect unless a loss uses a query."""
    projection_norm: bool = True
    """Batch norm in each hidden layer, as in PaCo; GPaCo has none. No effect unless a loss uses a query."""
    key_decay: float | str = "auto"
    """Decay per step of the EMA key encoder, in [0, 1], or 'auto': by the length of training, such that 5% of its initial
    weights are left where the first loss that uses it starts (10% of training for one that starts at once), but at most
    0.999, which PaCo publishes for 400 epochs. No effect unless a loss uses a key.
    """
    ghost_batch: int | None = None
    """Samples per batch-norm statistic in training, >= 2, a divisor of the batch size per rank; null: the whole batch
    of the rank. Must be set for equal results on different numbers of ranks.
    """
    tune: str = FULL
    """What of the backbone is trained; classifier and projection always are. 'full': all; 'head': nothing; 'bias': its biases
    (BitFit); 'norm': its normalization layers; 'lora': an update of low rank beside layers; 'adaptformer': a narrow network
    beside the MLP of every transformer block; 'partial:K': its last K blocks (residual or transformer), K >= 1. Batch norms
    whose weight is not trained keep their running statistics. Checkpoints contain what is trained, and all else comes from
    ``model.weights`` or the seed again; with ``train.init_from`` they contain everything. No effect in stage 2, whose checkpoints
    contain everything, too."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Updates of low rank beside frozen layers. No effect unless ``model.tune`` is 'lora'."""
    adaptformer: AdaptFormerConfig = field(default_factory=AdaptFormerConfig)
    """Narrow networks beside the MLPs of transformer blocks. No effect unless ``model.tune`` is 'adaptformer'."""

    def __post_init__(self) -> None:
        if self.name not in MODELS and is_network(self.name):
            raise ValueError(f"name={self.name} is a network of timm. Write {PREFIX}{self.name}")
        one_of(sorted(MODELS), PREFIX, name=self.name)
        if is_timm(self.name):
            check_name(self.name)
        self._check_branches()
        self._check_weights()
        one_of(sorted(HEADS), head=self.head)
        one_of(HEAD_INITS, head_init=self.head_init)
        if self.head_init == CLASS_MEANS and self.num_experts > 1:
            raise ValueError(
                f"head_init={CLASS_MEANS} needs num_experts=1, got {self.num_experts}: experts that start from the same weights "
                "would get the same rows, and what starts alike may stay alike"
            )
        check_text(self.head_init, self.name, self.weights, self.num_experts)
        positive(cosine_scale=self.cosine_scale)
        within(f"[1, {MAX_EXPERTS}]", num_experts=self.num_experts)
        refuse_idle(self.options, (self.name,), "model.name")
        within("(0, 1]", expert_width=self.expert_width)
        if self.bilateral and self.num_experts > 1:
            raise ValueError(
                f"bilateral=true needs num_experts=1, got {self.num_experts}: both say how the network branches"
            )
        if self.key_decay != AUTO:
            if isinstance(self.key_decay, str):
                raise ValueError(f"key_decay must be {AUTO} or a number in [0, 1], got {self.key_decay!r}")
            within("[0, 1]", key_decay=self.key_decay)
        at_least(0, projection_hidden=self.projection_hidden)
        at_least(1, projection_dim=self.projection_dim)
        at_least(2, ghost_batch=self.ghost_batch)
        one_of(TUNES, PARTIAL, tune=self.tune)
        check_partial(self.tune)

    def _check_branches(self) -> None:
        if (self.num_experts > 1 or self.bilateral) and not can_branch(self.name):
            key = "bilateral=true" if self.bilateral else f"num_experts={self.num_experts}"
            which = "networks of timm do not branch" if is_timm(self.name) else "this network does not branch"
            others = ", ".join(name for name in MODELS if can_branch(name))
            raise ValueError(f"{key} does not go with name={self.name}, as {which}. Choose one of {others}")

    def _check_weights(self) -> None:
        check_uris(weights=self.weights)
        if is_timm(self.name):
            if self.weights is not None and is_tag(self.weights):
                check_tag(self.name, self.weights)
                return
        elif self.weights == DEFAULT and not MODELS[self.name].weights:
            raise ValueError(
                f"weights={DEFAULT}: no weights of {self.name} are published. Set it to null or give a file"
            )
        if self.weights in (None, AUTO, DEFAULT):
            return
        if not self.weights.endswith(WEIGHT_FILES) or not (
            self.weights.startswith(("/", "~")) or "://" in self.weights
        ):
            raise ValueError(
                f"weights must be null, {AUTO}, {DEFAULT} or a file ({', '.join(WEIGHT_FILES)}) as an absolute path or URI, "
                f"because workers change directory, got {self.weights!r}"
            )


class LongTailNet(nn.Module):
    """Maps images to ``ModelOutput``, of which it fills only what ``needs`` names.

    Args:
        cfg: the network.
        num_classes: C.
        needs: outputs that the losses require, out of 'fmap', 'query', 'own_query', 'key', the names of ``stage_dims``
            (pooled features) and these after 'fmap/' (maps). 'query' and 'own_query' build a projection each; 'key' has no
            effect here, as the key encoder is an ``EmaCopy`` of this module and its key is its own query.
        seed: seed of the run, which determines the initial value of every parameter.
        scope: begins the full name of every parameter, so that a second network has other initial values.
    """

    def __init__(
        self, cfg: ModelConfig, num_classes: int, needs: frozenset[str], seed: int, *, scope: str = ""
    ) -> None:
        super().__init__()
        self.needs = needs
        self.feature_dim: int
        """D: experts' features are concatenated."""
        self.projection_dim = cfg.projection_dim
        """d, whether or not a projection is built."""
        with torch.random.fork_rng(
            devices=[]
        ):  # torch's own initialization, overwritten below, must not use up numbers
            torch.default_generator.manual_seed(rng.hash64(seed, "init", f"{scope}backbone") >> 1)  # for timm
            plain = builder(cfg.name, cfg.weights, cfg.options)(
                norm2d(cfg.ghost_batch), cfg.num_experts, cfg.expert_width
            )
            self.backbone = split_last_block(plain) if cfg.bilateral else plain
            dim = self.backbone.expert_dim * (2 if cfg.bilateral else 1)
            self.feature_dim = dim * cfg.num_experts
            """D, the length of the experts' concatenated features."""
            self.fmap_dim = self.backbone.fmap_dim * (self.feature_dim // self.backbone.expert_dim)
            """Channels of the experts' concatenated feature maps."""
            self.stage_dims = self.backbone.stage_dims
            build_head = HEADS[cfg.head].build
            self.heads = nn.ModuleList(
                build_head(dim, num_classes, cfg.cosine_scale, cfg.tde) for _ in range(cfg.num_experts)
            )
            self.projection = self._projection(cfg) if "query" in needs else None
            self.own_projection = self._projection(cfg) if "own_query" in needs else None
        init_parameters_(self, seed, conv_fan=self.backbone.conv_fan, scope=scope)
        with torch.random.fork_rng(devices=[]):
            tune_(self.backbone, cfg, num_classes=num_classes, seed=seed, scope=scope)
        self.frozen = frozen_names(self)
        """Names of the state dict's entries that training leaves as they are."""

    def train(self, mode: bool = True) -> LongTailNet:
        """Sets the mode of all modules; batch norms whose weight is not trained stay in evaluation mode."""
        super().train(mode)
        keep_frozen_(self)
        return self

    def _projection(self, cfg: ModelConfig) -> Projection:
        norm = norm1d(cfg.ghost_batch) if cfg.projection_norm else None
        return Projection(self.feature_dim, cfg.projection_dim, cfg.projection_hidden, norm)

    def forward(self, images_BCHW: Tensor) -> ModelOutput:
        """Computes logits, features and query in float32 under autocast (float64 for float64 images).

        Only convolutions run in a half type, because a bfloat16 logit has a relative error of 2^-9.
        """
        asked = frozenset(need.removeprefix(MAP) for need in self.needs)
        features, fmaps, stage_fmaps = self.backbone.outputs(images_BCHW, asked)
        with torch.autocast(images_BCHW.device.type, enabled=False):
            features_BD = torch.cat(features, 1) if len(features) > 1 else features[0]
            shares = features_BD.chunk(len(self.heads), 1)
            logits = [head(share_BD) for head, share_BD in zip(self.heads, shares, strict=True)]
            query_Bd = self.projection(features_BD) if self.projection is not None else None
            own_query_Bd = self.own_projection(features_BD) if self.own_projection is not None else None
        return ModelOutput(
            logits_BC=torch.stack(logits, 1) if len(logits) > 1 else logits[0],
            features_BD=features_BD,
            fmap_BDhw=(torch.cat(fmaps, 1) if len(fmaps) > 1 else fmaps[0]) if "fmap" in self.needs else None,
            query_Bd=query_Bd,
            own_query_Bd=own_query_Bd,
            stage_features_BD={n: pool(fmap) for n, fmap in stage_fmaps.items() if n in self.needs} or None,
            stage_fmaps_BDhw={n: fmap for n, fmap in stage_fmaps.items() if MAP + n in self.needs} or None,
        )

    def of_pairs(self, first_BCHW: Tensor, second_BCHW: Tensor, share: float) -> ModelOutput:
        """Computes logits and features [2 share f; 2 (1 - share) g] of pairs of images, in a bilateral network.

        f are the first images' features by the first branch, g the second ones' by the second. At ``share`` 1/2 the features of
        two equal images are those of ``forward``.
        """
        branches = enumerate([first_BCHW, second_BCHW])
        first_BD, second_BD = (pool(self.backbone.branch(images_BCHW, number)) for number, images_BCHW in branches)
        with torch.autocast(first_BCHW.device.type, enabled=False):
            features_BD = 2 * torch.cat([share * first_BD, (1 - share) * second_BD], 1)
            return ModelOutput(logits_BC=self.heads[0](features_BD), features_BD=features_BD)


@torch.no_grad()
def init_parameters_(net: nn.Module, seed: int, conv_fan: str, scope: str = "") -> None:
    """Sets every parameter from a generator keyed by (seed, 'init', its full name, which begins with ``scope``).

    Weights are He normal, N(0, 2 / fan): for convolutions the fan is ``conv_fan`` ('fan_in' or 'fan_out'), as in each
    network's paper code; for linear and cosine layers it is the number of inputs. Biases are 0, norm weights 1.

    Without a ``conv_fan`` the backbone keeps its values. Raises TypeError for a kind of module without a rule, so that no
    parameter keeps a value of torch's global generator.
    """
    for prefix, module in net.named_modules():
        if not conv_fan and prefix.partition(".")[0] == "backbone":
            continue
        for local, parameter in module.named_parameters(recurse=False):
            if local == "bias":
                parameter.zero_()
            elif isinstance(module, _BatchNorm):
                parameter.fill_(1)
            elif isinstance(module, nn.Conv2d | nn.Linear | CosineHead | TdeHead):
                fan_in, fan_out = _fans(parameter)
                fan = fan_out if isinstance(module, nn.Conv2d) and conv_fan == "fan_out" else fan_in
                gen = rng.generator(seed, "init", f"{scope}{prefix}.{local}")
                parameter.copy_(torch.randn(parameter.shape, generator=gen) * math.sqrt(2 / fan))
            else:
                raise TypeError(f"no initialization rule for {prefix}.{local} of {type(module).__name__}")


def _fans(weight: Tensor) -> tuple[int, int]:
    """Returns (inputs, outputs) of one unit of a [out, in, ...] weight.

    Grouped convolutions count one group, as in torch.
    """
    receptive = math.prod(weight.shape[2:])
    return weight.shape[1] * receptive, weight.shape[0] * receptive
