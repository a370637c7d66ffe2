"""A trained network that describes images by pseudo-attributes, with or without prototypes from its training.

Of a run with LPA, it is the network that the prototypes were made from, its key encoder at the last checkpoint, whose
training state holds them. Any other network describes images once ``cluster`` has made prototypes from its local features,
by the code that LPA itself uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ltcore.batch import Batch, ModelOutput
from ltcore.config.schema import RunConfig
from ltcore.data.config import DataConfig
from ltcore.data.prep import prep_of
from ltcore.data.shards.manifest import Manifest
from ltcore.errors import CheckpointError
from ltcore.evaluation.pairs import AttributeCounts
from ltcore.models.net import PROJECTIONS, LongTailNet, ModelConfig
from ltcore.models.timm_names import PREFIX
from ltcore.models.weights import expected_input
from ltcore.objective.dims import FeatureDims
from ltcore.objective.terms.lpa.local_features import location_boxes, needs_of
from ltcore.objective.terms.lpa.prototypes import Prototypes
from ltcore.objective.terms.lpa.term import Lpa, prototypes_spec
from ltcore.stats import ClassStats
from ltcore.training import checkpoint as ckpt
from ltcore.training.base import with_base
from ltcore.training.fetch import fetched
from ltcore.training.init_from import pretrained
from ltcore.training.predict import load
from ltcore.training.predictor import Predictor
from ltcore.training.weights_input import as_expected

FEWEST, MOST = 32, 512
"""Prototypes of a network without its own: as many as classes within these limits."""
RESERVOIR_BYTES = 2**30
"""Most memory of the local features that prototypes are made from."""
_PER_CLASS = 128
_NEVER_HAD = "which has none of its own"
_MEMORY = "Prototypes"
"""Name of LPA's memory in a checkpoint."""


@dataclass
class Describer:
    """A network and its prototypes."""

    predictor: Predictor
    memory: Prototypes
    origin: str
    """Where the prototypes come from, in a sentence; '' while there are none."""
    why_none: str = ""
    """Why there were none before ``cluster``, as the end of a sentence."""

    @torch.no_grad()
    def outputs(self, canvases_B3SS: Tensor) -> ModelOutput:
        """Returns the network's output for uint8 images, with the maps that prototypes need.

        Raises NumericError where it is not finite.
        """
        images_BCHW = self.predictor.normalize(canvases_B3SS.to(self.predictor.device))
        out: ModelOutput = self.predictor.net(images_BCHW)
        self.predictor.finite(out.logits_BC)
        return out

    def boxes(self, out: ModelOutput) -> Tensor:
        """Returns the places [P, 4] of the locations that ``Prototypes.located`` speaks of."""
        return location_boxes(out, self.memory.spec.from_layers, self.memory.spec.scales)

    @torch.no_grad()
    def cluster(self, batches: Iterable[Batch]) -> None:
        """Makes prototypes from local features of training images, whose batches hold uint8 images."""
        for batch in batches:
            here = batch.to(self.predictor.device)
            self.memory.observe(self.outputs(here.images_VBCHW[0]), here)
        self.memory.merge(progress=1.0)
        if not self.memory.num_clusters:
            raise CheckpointError(f"{self.predictor.place} has no local features other than 0. Use another checkpoint.")
        self.origin = (
            f"{self.memory.num_clusters} prototypes, made for this page by k-means from the local features of this network, "
            f"{self.why_none}"
        )


def open_describer(run: str | Path) -> Describer:
    """Opens the network of a run or checkpoint directory, on the GPU where there is one.

    Raises CheckpointError where there is none or it is damaged.
    """
    predictor = load(run, device="auto")
    found = _with_prototypes(run, predictor)
    return found if isinstance(found, Describer) else _without_prototypes(predictor, found)


def open_backbone(name: str, weights: str | None, data: DataConfig, manifest: Manifest) -> Describer:
    """Opens a backbone with published weights, which sees images as these were trained on them.

    ``weights`` is 'default' or a file. Raises ConfigError or CheckpointError where they cannot be had.
    """
    net = pretrained(name, weights, len(manifest.classes)).eval()
    if (expected := expected_input(name, weights)) is not None:
        data = as_expected(data, expected)
    prep = prep_of(data, manifest)
    predictor = Predictor(
        net=net,
        config=RunConfig(name=name.removeprefix(PREFIX), data=data, model=ModelConfig(name=name, weights=weights)),
        classes=manifest.classes,
        image_size=prep.image_size,
        mean=prep.mean,
        std=prep.std,
        framing=prep.framing,
        shot_groups=manifest.shot_groups,
        place=f"{name} with weights {weights}",
        data_hash=manifest.hash,
        attributes=(),
        attribute_counts=AttributeCounts.of_rows([[] for _ in manifest.classes], 0),
    )
    return _without_prototypes(predictor.to("auto"), _NEVER_HAD)


def _without_prototypes(predictor: Predictor, why: str) -> Describer:
    num_classes, dim = len(predictor.classes), cast(LongTailNet, predictor.net).feature_dim
    cfg = Lpa.Config(
        num_attributes=min(max(num_classes, FEWEST), MOST),
        reservoir_per_class=min(max(RESERVOIR_BYTES // (4 * dim * num_classes), 1), _PER_CLASS),
    )
    return Describer(predictor, _prepared(predictor, cfg), "", why)


def _with_prototypes(run: str | Path, predictor: Predictor) -> Describer | str:
    """Returns the key encoder and the prototypes of a run with LPA, or why there are none."""
    cfg = predictor.config.objective.active_terms().get("lpa")
    if cfg is None or predictor.config.stage2 is not None:
        return _NEVER_HAD
    with fetched(str(run), _training_state) as path:
        found = ckpt.read(path, str(run)) if (path / "meta.json").exists() else ckpt.find(path / "checkpoints")
        if found is None or not (found.path / "state.pt").exists():
            return "as those of its training with LPA are in state.pt, which this checkpoint is without"
        state = found.train_state()
    memory = _prepared(predictor, cfg)
    _restore(memory, state, found.place)
    if not memory.num_clusters:
        return f"as its training with LPA had made none by epoch {found.meta.get('epoch')}"
    net = cast(LongTailNet, predictor.net)
    weights = {n: value for n, value in with_base(net, state["key"]).items() if not n.startswith(PROJECTIONS)}
    ckpt.refuse_other_network(f"{found.place}/state.pt", weights, net.state_dict())
    net.load_state_dict(weights)
    origin = f"{memory.num_clusters} prototypes, those of the training with LPA after epoch {found.meta.get('epoch')}"
    return Describer(replace(predictor, place=found.place), memory, origin)


def _training_state(names: Sequence[str]) -> list[str]:
    """Returns the files of the newest checkpoint with training state."""
    if "state.pt" in names:
        return ["meta.json", "state.pt"]
    last = [n for n in names if n.startswith("checkpoints/last-") and n.endswith("/meta.json")]
    return [max(last), f"{max(last).removesuffix('meta.json')}state.pt"] if last else []


def _prepared(predictor: Predictor, cfg: Lpa.Config) -> Prototypes:
    """Returns the empty memory, and makes the network compute the maps that it reads."""
    net, spec = cast(LongTailNet, predictor.net), prototypes_spec(cfg)
    net.needs = needs_of(spec.from_layers)
    most_C = torch.full((len(predictor.classes),), 2**53)  # every image counts as often as it is shown
    stats = ClassStats(most_C, predictor.shot_groups)
    memory = spec.build(
        stats, FeatureDims(net.feature_dim, net.projection_dim, 0, net.stage_dims, net.fmap_dim), seed=0
    )
    memory.to(predictor.device)
    return memory


def _restore(memory: Prototypes, state: dict[str, Any], place: str) -> None:
    """Loads the prototypes of a training state. Raises CheckpointError where they are missing, of other sizes or damaged."""
    published = state.get("memories", {}).get(_MEMORY, {}).get("published", {})
    own = {name: tuple(tensor.shape) for name, tensor in memory.published().items()}
    wrong = [name for name, shape in own.items() if tuple(getattr(published.get(name), "shape", ())) != shape]
    if not wrong:
        known = {"prototypes": published["prototypes"].isfinite().all()}
        known["schedule"] = 0 <= published["schedule"][0] <= memory.spec.num_attributes
        wrong = [name for name, good in known.items() if not good]
    if wrong or state.get("key") is None:
        what = f"the prototypes of its configuration ({', '.join(wrong)})" if wrong else "the key encoder"
        raise CheckpointError(f"{place}/state.pt does not hold {what}. Use another checkpoint.")
    memory.load(published, [memory.pending()])
