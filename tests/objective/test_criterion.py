"""Our losses in other loops: the examples run, a loop has the numbers of our own step, and what is missing is said."""

from __future__ import annotations

import dataclasses
import io
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

import ltcore
from ltcore.batch import Batch, Mix
from ltcore.contracts import harness
from ltcore.errors import CheckpointError, ConfigError
from ltcore.models.ema import EmaCopy
from ltcore.models.net import LongTailNet, ModelConfig
from ltcore.objective.criterion import MOST_FORWARDS, Criterion
from ltcore.objective.objective import make_objective
from ltcore.rng import generator
from ltcore.training.step import TrainStep

COUNTS = [12, 8, 4]
CLASSES, BATCH, SIDE = len(COUNTS), 8, 16
ALL: dict[str, dict[str, Any]] = {
    "lpa": {"start": 0.0, "num_attributes": 4, "queue_size": 16, "neighbors": 1, "threshold": 0.0},
    "dro": {"start": 0.0},
    "ifl": {"start": 0.2, "milestones": (0.6,)},
}
STEPS, PER_EPOCH = 9, 3


def examples() -> list[str]:
    """The programs of the class's docstring: a plain loop, a Lightning module, and a compiled function of such a loop."""
    blocks = textwrap.dedent("    " + (Criterion.__doc__ or "")).split("::\n")[1:]
    indented = ([line for line in block.splitlines() if not line or line.startswith("    ")] for block in blocks)
    return [textwrap.dedent("\n".join(lines)).strip() for lines in indented]


def loader() -> list[tuple[Tensor, Tensor]]:
    labels_N = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
    order_N = torch.randperm(len(labels_N), generator=generator(0, "order"))
    images = torch.randn(len(labels_N), 3, 32, 32, generator=generator(0, "images")) + labels_N[:, None, None, None]
    return [(images[part], labels_N[part]) for part in order_N.split(BATCH)]


def test_the_examples_are_short() -> None:
    assert [len(example.splitlines()) <= 15 for example in examples()] == [True] * 3


def test_the_plain_loop_learns() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    seen: list[float] = []

    class Watched(Criterion):
        def forward(self, *args: Any, **others: Any) -> Tensor:
            loss = super().forward(*args, **others)
            seen.append(float(self.parts["base"]))
            return loss

    names = {"timm": timm, "torch": torch, "ltcore": _Face(Watched), "counts": COUNTS, "loader": loader(), "epochs": 4}
    exec(examples()[0], names)
    assert sum(seen[-3:]) < 0.7 * sum(seen[:3])
    assert {"base", "dro"} <= names["criterion"].parts.keys()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_compiled_function_has_the_losses_of_the_plain_loop() -> None:
    timm = pytest.importorskip("timm")
    torch._dynamo.reset()
    built, loop = examples()[0].split("for epoch in range(epochs):\n")
    lines = [line for line in loop.splitlines() if "features = " not in line]
    compiled = "\n".join(lines).replace(
        "criterion(net.get_classifier()(features), labels, features)", "loss_of(images, labels)"
    )
    function = examples()[2].replace("fullgraph=True", "fullgraph=True, backend='eager'")
    found = []
    for program in (examples()[0], f"{built}{function}\nfor epoch in range(epochs):\n{compiled}"):
        torch.manual_seed(0)
        names = {"timm": timm, "torch": torch, "ltcore": ltcore, "counts": COUNTS, "loader": loader(), "epochs": 2}
        exec(program, names)
        found.append(names["net"].state_dict())  # type: ignore[attr-defined]
    assert "loss_of(images, labels)" in compiled
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


class _Face:
    """``ltcore`` with a criterion that is watched."""

    def __init__(self, criterion: type[Criterion]) -> None:
        self.Criterion = criterion


def test_the_lightning_module_learns(tmp_path: Any) -> None:
    timm, lightning = pytest.importorskip("timm"), pytest.importorskip("lightning")
    names: dict[str, Any] = {"timm": timm, "torch": torch, "ltcore": ltcore, "lightning": lightning}
    exec(examples()[1], names)
    torch.manual_seed(0)
    model, data = names["Classifier"](COUNTS, 4 * len(loader())), loader()

    def loss() -> float:
        with torch.no_grad():
            return sum(float(torch.nn.functional.cross_entropy(model.net(x), y)) for x, y in data)

    model.train()
    before = loss()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    batched = torch.utils.data.DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    lightning.Trainer(max_epochs=4, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(model, batched)
    assert model.criterion.progress == 1.0
    assert model.criterion.objective.memories()["ClassCentroids"].published()["count_C"].tolist() == COUNTS
    assert loss() < 0.8 * before


def criterion(base: str = "paco", terms: dict[str, dict[str, Any]] | None = None, **options: Any) -> Criterion:
    options = {"class_counts": COUNTS, "feature_dim": 64, "total_steps": STEPS, **options}
    return Criterion(base, terms=ALL if terms is None else terms, queue_size=16, **options)


def batches() -> list[Batch]:
    labels_N = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
    found = []
    for index_B in torch.randperm(len(labels_N), generator=generator(0, "order")).split(BATCH):
        images = torch.randn(2, len(index_B), 3, SIDE, SIDE, generator=generator(1, str(index_B[0])))
        found.append(Batch(images, labels_N[index_B], index_B, torch.zeros_like(index_B)))
    return found


def network() -> tuple[LongTailNet, EmaCopy[LongTailNet]]:
    net = LongTailNet(ModelConfig(name="resnet8"), CLASSES, frozenset({"query", "fmap"}), 0)
    return net, EmaCopy(net, 0.9)


class Foreign:
    """A loop that knows nothing of ours but the criterion."""

    def __init__(self) -> None:
        self.net, self.key = network()
        self.criterion = criterion()
        self.optimizer = torch.optim.SGD([*self.net.parameters(), *self.criterion.parameters()], lr=0.05)

    def run(self, first: int, last: int) -> list[Tensor]:
        losses = []
        for number in range(first, last):
            batch = batches()[number % PER_EPOCH]
            self.key.update(self.net)
            out = self.net(batch.images_VBCHW[0])
            with torch.no_grad():
                keyed = self.key.net(batch.images_VBCHW[1])
            loss = self.criterion(
                out.logits_BC,
                batch.labels_B,
                out.features_BD,
                indices_B=batch.index_B,
                query_Bd=out.query_Bd,
                key_Bd=keyed.query_Bd,
                key_features_BD=keyed.features_BD,
                fmap_BDhw=keyed.fmap_BDhw,
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.criterion.step()
            losses.append(loss.detach())
            if (number + 1) % PER_EPOCH == 0:
                self.criterion.epoch_end()
        return losses

    def state(self) -> dict[str, Any]:
        parts = {"net": self.net, "key": self.key.net, "criterion": self.criterion, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in (("net", self.net), ("key", self.key.net), ("criterion", self.criterion)):
            part.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])


def test_a_loop_has_the_losses_of_our_own_step() -> None:
    """PaCo with all three terms, three epochs of three steps, to the bit."""
    net, key = network()
    objective = make_objective("paco", ALL, class_counts=COUNTS, features=64, queue_size=16)
    step = TrainStep(net, objective, key, None).train()
    optimizer = torch.optim.SGD(step.parameters(), lr=0.05)
    ours = []
    for number in range(STEPS):
        batch, progress = batches()[number % PER_EPOCH], number / STEPS
        key.update(net)
        loss, _, out = step(batch, progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.observe(out, batch, progress)
        ours.append(loss.detach())
        if (number + 1) % PER_EPOCH == 0:
            objective.merge((number + 1) / STEPS)
    assert torch.equal(torch.stack(Foreign().run(0, STEPS)), torch.stack(ours))


@pytest.mark.parametrize("cut", [PER_EPOCH, 5], ids=["between epochs", "within an epoch"])
def test_a_restored_loop_goes_on_as_if_it_had_not_stopped(cut: int) -> None:
    whole, before, after = Foreign(), Foreign(), Foreign()
    losses = whole.run(0, STEPS)
    before.run(0, cut)
    kept = io.BytesIO()
    torch.save(before.state(), kept)
    before.run(cut, STEPS)  # what was saved are copies
    after.load(torch.load(io.BytesIO(kept.getvalue()), weights_only=True))
    assert torch.equal(torch.stack(after.run(cut, STEPS)), torch.stack(losses[cut:]))


def test_the_state_of_other_losses_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"memories Queue, Prototypes.* does not fit paco, which has Queue"):
        criterion(terms={}).load_state_dict(criterion().state_dict())


# ---- every row of the registry


def of_row(row: tuple[str, str]) -> Criterion:
    kind, name = row
    base = name if kind == "base" else "balanced_softmax"
    options = harness.options(base) if kind == "base" else {}
    terms = {} if kind == "base" else {harness.key_of(name): {"start": 0.0} | harness.options(name)}
    sizes = {"feature_dim": harness.FEATURES, "projection_dim": harness.PROJECTION, "stage_dims": harness.STAGES}
    made = Criterion(harness.key_of(base), class_counts=harness.COUNTS, terms=terms, **sizes, **options)  # type: ignore[arg-type]
    made.progress = harness.PROGRESS
    made.objective.double()
    return made


def arguments(made: Criterion) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Everything that any loss may ask for; of this one only."""
    out, batch = harness.output_of(made.objective, harness.ragged()), harness.batch_of(harness.ragged())
    given = {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
    logits = given.pop("logits_BC")
    mix = harness.mixed(batch).mix if made.objective.base.pairs else None
    return logits, batch.labels_B, given | {"indices_B": batch.index_B, "mix": mix}


@pytest.mark.parametrize("row", harness.ROWS, ids="-".join)
def test_what_is_required_is_enough_and_necessary(row: tuple[str, str]) -> None:
    """Also for the memories. Without one of the arguments a sentence names it."""
    made = of_row(row)
    logits, labels_B, given = arguments(made)
    required = {name for name, _ in made._required}
    least = {name: value for name, value in given.items() if name in {*required, "mix"}}
    for _ in range(2):
        assert made(logits, labels_B, **least).isfinite()
        made.step()
        made.epoch_end()
    assert torch.equal(made(logits, labels_B, **least), made(logits, labels_B, **given))
    for name in required:
        with pytest.raises(ValueError, match=rf"needs {name}.*was not given: pass criterion\(\.\.\., {name}="):
            made(logits, labels_B, **{key: value for key, value in least.items() if key != name})


# ---- refusals


LOGITS, LABELS = torch.zeros(4, CLASSES), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"base": "sade"}, {}, r"sade takes logits \[B, E, 3\] of several experts, got shape \(4, 3\)"),
        ({}, {"logits_BC": torch.zeros(4, 5)}, r"cross_entropy takes logits \[B, 3\], got shape \(4, 5\)"),
        ({}, {"labels_B": LABELS.float()}, r"labels_B must be int64 class numbers \[4\]"),
        ({"base": "bbn"}, {}, "bbn takes pairs of images"),
        ({"base": "ldam"}, {}, r"ldam follows the progress of training: give Criterion\(total_steps="),
        ({"terms": {"dro": {}}, "feature_dim": 4}, {}, r"cross_entropy \+ dro follows the progress"),
    ],
)
def test_a_call_that_cannot_be_is_refused(options: dict[str, Any], call: dict[str, Any], message: str) -> None:
    made = Criterion(options.pop("base", "cross_entropy"), class_counts=COUNTS, **options)
    with pytest.raises(ValueError, match=message):
        made(**({"logits_BC": LOGITS, "labels_B": LABELS} | call))


def test_mixed_images_are_refused_where_they_have_no_meaning() -> None:
    mix = Mix(LABELS, torch.ones(4), LABELS)
    with pytest.raises(ValueError, match="paco does not take mixed images"):
        Criterion("paco", class_counts=COUNTS)(LOGITS, LABELS, mix=mix)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown argument 'feature'"):
        Criterion(class_counts=COUNTS)(LOGITS, LABELS, feature=LOGITS)
    with pytest.raises(ConfigError, match=r"dro needs features_BD: give their length as feature_dim"):
        Criterion(class_counts=COUNTS, terms={"dro": {}})
    with pytest.raises(ConfigError, match="total_steps=0"):
        Criterion(class_counts=COUNTS, total_steps=0)
    with pytest.raises(ConfigError, match=r"progress=1\.5: expected"):
        Criterion(class_counts=COUNTS).progress = 1.5
    with pytest.raises(ConfigError, match=r"progress=0\.5 would contradict total_steps=7"):
        Criterion(class_counts=COUNTS, total_steps=7).progress = 0.5


def test_a_loop_that_never_steps_is_told() -> None:
    made = Criterion(class_counts=COUNTS, feature_dim=2, terms={"dro": {}}, total_steps=3)
    for _ in range(MOST_FORWARDS):
        made(LOGITS, LABELS, torch.ones(4, 2))
    with pytest.raises(RuntimeError, match=r"64 were computed without criterion\.step\(\)"):
        made(LOGITS, LABELS, torch.ones(4, 2))
    made.eval()
    assert made(LOGITS, LABELS, torch.ones(4, 2)).isfinite()


def test_losses_stay_on_their_device_where_only_the_number_type_changes() -> None:
    made = Criterion(class_counts=COUNTS, feature_dim=2, terms={"dro": {}}).to("meta")
    assert made.to(torch.bfloat16).objective.stats_device.type == "meta"


def test_losses_keep_their_number_type() -> None:
    made = torch.nn.ModuleList(
        [torch.nn.Linear(2, 2), Criterion(class_counts=COUNTS, feature_dim=2, terms={"dro": {}})]
    )
    made.to(torch.bfloat16)
    inside = made[1].objective.memories()["ClassCentroids"].published()["mean_CD"]  # type: ignore[union-attr]
    assert made[0].weight.dtype == torch.bfloat16
    assert inside.dtype == torch.float64
