"""Initial weights from another run (``train.init_from``) or of a pretrained backbone (``model.weights``).

The latter are also what checkpoints of a tuned run are put together with, see ``base``.
"""

from __future__ import annotations

import logging
import pickle
import re
import socket
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ltcore import dist
from ltcore.config.schema import RunConfig
from ltcore.errors import CheckpointError, ConfigError
from ltcore.models import timm_weights
from ltcore.models.lora import merged
from ltcore.models.net import PROJECTIONS, LongTailNet, ModelConfig
from ltcore.models.timm_names import is_tag, is_timm
from ltcore.models.tune import FULL, is_added
from ltcore.models.weights import AUTO, DEFAULT, at_hand, download_command, published_file
from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.text import counted
from ltcore.training import checkpoint as ckpt
from ltcore.training.base import META, tensors_hash
from ltcore.training.build import Components
from ltcore.training.evaluate import Evaluator
from ltcore.training.fetch import fetched_checkpoint
from ltcore.training.same_start import origin_of
from ltcore.training.weights_file import SHA256, tensors, whole_file

_LOG = logging.getLogger("ltcore.training")
_EXPERT = re.compile(r"^backbone\.(trunk|branches\.\d+|net)\.")
_SAME = (
    "model.name",
    "model.head",
    "model.cosine_scale",
    "model.tde.parts",
    "model.tde.gamma",
    "model.num_experts",
    "model.expert_width",
    "model.bilateral",
)
"""Keys that must be equal for networks with the same tensors to compute the same function."""


def start_from(cfg: RunConfig, components: Components, classes: tuple[str, ...]) -> dict[str, Any]:
    """Loads the weights that the run starts from into the network and its moving averages.

    They are those of ``train.init_from``, or the backbone's of ``model.weights``. A collective; rank 0 reads. Returns where
    they came from, for the run's record; {} where ``model.weights`` is auto and they are not at hand. Raises
    CheckpointError where they are of another network or of other classes. A projection is initialized from the run's seed
    unless a checkpoint has one of the same sizes. A second network takes over the backbone, and keeps a classifier of its own.
    """
    net = components.step.net
    weights, origin = dist.broadcast_object(_found(cfg, net.state_dict(), classes) if dist.rank() == 0 else None)
    if not origin:
        return {}
    own, theirs = _projection(net.state_dict()), _projection(weights)
    fits = {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}
    net.load_state_dict(_beside_projections(weights) | (theirs if fits else own))
    for copy in (components.step.key, components.average):
        if copy is not None:
            copy.net.load_state_dict(net.state_dict())
    twin = components.step.twin
    if twin is not None:
        twin.load_state_dict({**twin.state_dict(), **net.backbone.state_dict(prefix="backbone.")})
    return origin


def start_centroids(cfg: RunConfig, components: Components, evaluator: Evaluator) -> None:
    """Publishes the class centroids of the weights that the run starts from, where a loss reads centroids.

    Otherwise the first epoch would have none, and a loss that acts from the beginning on would not. They are those of the
    training images without augmentation, as in DRO-LT's code, which computes them before each epoch. A collective, for
    weights of ``train.init_from``: those of a drawn network say nothing about classes.
    """
    memories = components.step.objective.memories().values()
    centroids = [memory for memory in memories if isinstance(memory, ClassCentroids)]
    if cfg.train.init_from is None or not centroids:
        return
    for batch, out in evaluator.outputs(cfg.data.train_split):
        for memory in centroids:
            memory.observe(out, batch)
    for memory in centroids:
        memory.merge(progress=0.0)


def _found(
    cfg: RunConfig, own: dict[str, Tensor], classes: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if cfg.train.init_from is not None:
        return _read(cfg.train.init_from, cfg.to_flat(), classes, own)
    return initial_weights(cfg.model, own)


def initial_weights(model: ModelConfig, own: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns ``own`` with the backbone's tensors of ``model.weights``, and where they came from; two times {} where drawn.

    What ``model.tune`` adds to the backbone is not part of any file and stays as it is.
    """
    file = weights_file(model)
    if file is None:
        return {}, {}
    found, origin = read_backbone(file, {name: value for name, value in own.items() if not is_added(name)}, model)
    return {name: found.get(name, value.cpu()) for name, value in own.items()}, origin


def weights_file(model: ModelConfig) -> str | None:
    """Returns the file that ``model.weights`` means on this machine; None where weights are drawn.

    Those that timm publishes are downloaded. Raises CheckpointError for published weights that cannot be had.
    """
    if is_timm(model.name) and model.weights is not None and (model.weights == DEFAULT or is_tag(model.weights)):
        return str(timm_weights.fetched(model.name, model.weights))
    if model.weights not in (AUTO, DEFAULT):
        return model.weights
    if at_hand(model.name):
        return str(published_file(model.name))
    if model.weights == AUTO:
        return None
    raise CheckpointError(
        f"model.weights={DEFAULT}: {published_file(model.name)} is not on {socket.gethostname()}. Fetch it there with "
        f"{download_command(model.name)}, or set model.weights to a file that all nodes reach, or to null."
    )


def pretrained(name: str, weights: str | None, num_classes: int) -> LongTailNet:
    """Returns a backbone with pretrained weights, a file or 'default', below a classifier that was not trained.

    Raises ConfigError where weights are not named, CheckpointError where they cannot be had.
    """
    if weights in ("", "null", "none"):
        raise ConfigError(f"--weights {weights}: features need weights. Give a file, or default.")
    try:
        model = ModelConfig(name=name, weights=weights)
    except ValueError as error:
        raise ConfigError(f"--weights: {error}.") from None
    net = LongTailNet(model, num_classes, frozenset(), 0)
    file = weights_file(model)
    if file is None:
        raise ConfigError(f"--weights {weights}: features need weights. Give a file, or default.")
    net.load_state_dict(read_backbone(file, net.state_dict(), model)[0])
    return net


def read_backbone(uri: str, own: dict[str, Tensor], model: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns ``own`` with the backbone's tensors from a file with torchvision's or timm's names, and where they came from.

    Every expert gets the same weights. Of weights that timm itself loads so, tensors that the file lacks stay as they are in
    ``own``, and those that it has beyond the network are left out, which is said. Raises CheckpointError where the file at
    ``uri`` holds no such tensors.
    """
    file, digest = whole_file(uri)
    try:
        theirs = tensors(file)
    except pickle.UnpicklingError as error:  # torch's words for it advise to trust the file
        raise CheckpointError(
            f"model.weights={uri} is not a file of tensors alone: it holds Python objects beside them, which are not opened, or "
            "is damaged. Of a checkpoint of yours, save the tensors: torch.save(checkpoint[NAME OF THE WEIGHTS], FILE)."
        ) from error
    except Exception as error:  # torch raises any type on foreign bytes
        raise CheckpointError(
            f"model.weights={uri} is not a file of tensors ({_problem(error)}). Use another file."
        ) from error
    names = {name: _EXPERT.sub("", name) for name in own if name.startswith("backbone.")}
    known, strict = _beside_classifier(uri, theirs, model) if isinstance(theirs, dict) else ({}, True)
    missing = {name for name in names.values() if name not in known and not name.endswith(".num_batches_tracked")}
    extra = known.keys() - set(names.values())
    loose = not strict and len(missing) < len(names) / 2  # a file that lacks most of it is of another network
    wrong = [
        f"{name}: {tuple(getattr(known.get(name), 'shape', ())) or 'nothing'} there, {tuple(own[mine].shape)} expected"
        for mine, name in names.items()
        if name in (known if loose else {*known, *missing})
        and getattr(known.get(name), "shape", None) != own[mine].shape
    ]
    wrong += [f"{name}: not part of it" for name in extra if not loose]
    if wrong:
        library, alone = ("timm", "") if is_timm(model.name) else ("torchvision", ", with model.num_experts=1")
        raise CheckpointError(
            f"model.weights={uri} does not hold {library}'s weights of this backbone ({'; '.join(sorted(wrong)[:3])}; "
            f"{len(wrong)} in all). Use the file of the network that model.name names{alone}."
        )
    ckpt.refuse_bad_weights(f"model.weights={uri}", known)
    if missing or extra:
        what = [f"it lacks {_shown(missing)} of the backbone, which stay as drawn"] * bool(missing)
        what += [f"{_shown(extra)} in it are left out"] * bool(extra)
        _LOG.warning("model.weights=%s is loaded in part, as timm does it: %s", uri, "; ".join(what))
    mine = {name: value.cpu() for name, value in own.items()}  # sent to all ranks, which have different devices
    loaded = {  # a file may hold halves; what a network holds is what the hash of a base is of
        name: known[theirs].to(own[name].dtype) for name, theirs in names.items() if theirs in known
    }
    return mine | loaded, {"weights": uri, SHA256: digest}


def _shown(names: Collection[str]) -> str:
    return f"{counted(len(names), 'tensor')} ({', '.join(sorted(names)[:3])}{', ...' * (len(names) > 3)})"


def _beside_classifier(uri: str, theirs: dict[str, Any], model: ModelConfig) -> tuple[dict[str, Any], bool]:
    """Returns the tensors of the backbone, by today's names of torchvision or timm, and whether they have to be all of it."""
    if not is_timm(model.name):
        return {name: value for name, value in theirs.items() if not name.startswith("fc.")}, True
    try:
        return timm_weights.backbone_tensors(model.name, model.weights, theirs)
    except Exception as error:  # timm raises any type on the names and sizes of another network
        raise CheckpointError(
            f"model.weights={uri} does not hold timm's weights of this backbone ({_problem(error)}). Use the file of the "
            "network that model.name names."
        ) from error


def _problem(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(PROJECTIONS)}


def _read(
    uri: str, config: dict[str, Any], classes: tuple[str, ...], own: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with fetched_checkpoint(uri, weights=True) as path:
        if not path.exists():
            raise CheckpointError(f"train.init_from={uri} does not exist: expected a run or checkpoint directory.")
        found = ckpt.read(path, uri)
        _refuse_others(uri, found, config, classes)
        started_from = {**origin_of(found), "checkpoint": found.place}
        weights = merged_weights(found)
        if not any(map(is_added, weights)):  # adapters of theirs take the place of ours, all or none of them
            weights |= {n: value.cpu() for n, value in own.items() if is_added(n)}
    ckpt.refuse_other_network(f"{found.place}/model.pt", _beside_projections(weights), _beside_projections(own))
    return weights, started_from


def _beside_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(PROJECTIONS)}


def _refuse_others(uri: str, found: ckpt.Checkpoint, config: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Raises CheckpointError where the checkpoint is of another kind of network or of other classes."""
    found.require("config", "classes", "epoch", "step")
    theirs = found.meta["config"]
    different = [
        f"{key}: {theirs.get(key)!r} there, {config[key]!r} now" for key in _SAME if theirs.get(key) != config[key]
    ]
    if different:
        raise CheckpointError(
            f"train.init_from={uri} holds another network ({'; '.join(different)}). Set these keys to the same values, or "
            "start from another checkpoint."
        )
    if tuple(found.meta["classes"]) != classes:
        raise CheckpointError(
            f"train.init_from={uri} has {counted(len(found.meta['classes']), 'class')} "
            f"({', '.join(map(str, found.meta['classes'][:3]))}, ...), the data have {len(classes)} "
            f"({', '.join(classes[:3])}, ...): they must be the same, in the same order."
        )


def whole_state(found: ckpt.Checkpoint, cfg: RunConfig, parts: Components, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training state of a checkpoint with the bases that it leaves out. ``parts`` are as they were built.

    Raises CheckpointError where the base is another one now.
    """
    net, twin = parts.step.net, parts.step.twin
    base, drawn = _base(found, cfg, net)
    if not base:
        return dict(state)
    added = {f"net.{name}": value for name, value in base.items()}
    if twin is not None:
        of_twin = twin.state_dict() if drawn else base  # that it took over from the first network
        added |= {f"twin.{name}": of_twin[name].cpu() for name in twin.frozen}
    copies = {part: state[part] and {**base, **state[part]} for part in ("key", "average")}
    return {**state, "step": {**added, **state["step"]}, **copies}


def whole_weights(found: ckpt.Checkpoint, cfg: RunConfig, net: LongTailNet) -> dict[str, Tensor]:
    """Returns all weights of a checkpoint, with the base that it leaves out. ``net`` is as its run built it.

    Raises CheckpointError where the base is another one now, or the weights are damaged.
    """
    return {**_base(found, cfg, net)[0], **found.model_state()}


def merged_weights(found: ckpt.Checkpoint) -> dict[str, Tensor]:
    """Returns all weights of a checkpoint for a network without updates of low rank, which are added to the weights."""
    found.require("config", "classes")
    cfg = found.config()
    if cfg.model.tune == FULL:
        return found.model_state()
    net = LongTailNet(cfg.model, len(found.meta["classes"]), frozenset(), cfg.seed)
    weights = whole_weights(found, cfg, net)
    ckpt.refuse_other_network(f"{found.place}/model.pt", _beside_projections(weights), net.state_dict())
    return merged(weights, net)


def _base(found: ckpt.Checkpoint, cfg: RunConfig, net: LongTailNet) -> tuple[dict[str, Tensor], bool]:
    """Returns what the checkpoint leaves out of the network, {} where it is whole, and whether the seed alone gives it."""
    expected = found.meta.get(META)
    if expected is None:
        return {}, False
    own = net.state_dict()
    tensors, origin = initial_weights(cfg.model, own)
    base = {name: (tensors or own)[name].cpu() for name in net.frozen}
    if tensors_hash(base) != expected:
        source = origin.get("weights") or f"seed={cfg.seed} with model.weights={cfg.model.weights}"
        raise CheckpointError(
            f"{found.place} holds only what model.tune={cfg.model.tune} trained on top of a base with sha256 {expected[:12]}, "
            f"but {source} gives another one here: bring back the weights that the run started from."
        )
    return base, not tensors
