"""Every loss that the authors' published code has, against its numbers: losses and gradients, float64.

1e-9 where both compute the same formula. 1e-6 where their code does not keep float64 throughout or adds small numbers
against infinities; each test names the cause.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.objective.interface import Base
from ltcore.objective.losses.balanced_softmax import BalancedSoftmax
from ltcore.objective.losses.focal import Focal
from ltcore.objective.losses.gpaco import Gpaco
from ltcore.objective.losses.ldam import Ldam
from ltcore.objective.losses.paco import Paco
from ltcore.objective.losses.ride import Ride
from ltcore.objective.losses.sade import Sade
from ltcore.objective.memory.queue import Queue
from ltcore.objective.terms.dro import Dro
from ltcore.objective.terms.ifl.environments import tail_weights
from ltcore.objective.terms.ifl.term import Ifl
from tests.objective import toy


@pytest.fixture(params=["small", "cifar100"])
def size(request: pytest.FixtureRequest) -> str:
    return request.param


def leaf(size: str, name: str) -> Tensor:
    return toy.golden(size)[name].clone().requires_grad_()


def base_losses(size: str, base: Base, logits: Tensor, progress: float = 0.9) -> Tensor:
    """[B] under the golden counts and labels."""
    golden = toy.golden(size)
    ctx = toy.make_context(toy.make_stats(golden["class_counts"]), progress)
    return base(toy.make_output(logits), golden["labels"], ctx)


def make_base(size: str, kind: type[Base], **options: object) -> Base:
    stats = toy.make_stats(toy.golden(size)["class_counts"])
    return kind(kind.Config(**options), stats, toy.make_dims(1, stats))  # type: ignore[attr-defined]


def compare(size: str, name: str, loss: Tensor, inputs: list[Tensor], tolerance: float, factor: float = 1.0) -> None:
    """``factor`` times our loss and its gradients by ``inputs`` against <name>/loss, <name>/grad0, ..."""
    gradients = torch.autograd.grad(loss, inputs)
    toy.assert_golden(factor * loss, f"{name}/loss", tolerance, size)
    for i, gradient in enumerate(gradients):
        toy.assert_golden(factor * gradient, f"{name}/grad{i}", tolerance, size)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("balanced_softmax", BalancedSoftmax, {}),
        ("focal_gamma2", Focal, {"gamma": 2.0, "detach": True}),  # their factor is a constant for the gradient
    ],
)
def test_same_formula(size: str, name: str, kind: type[Base], options: dict[str, object]) -> None:
    logits = leaf(size, "logits")
    compare(size, name, base_losses(size, make_base(size, kind, **options), logits).mean(), [logits], 1e-9)


@pytest.mark.parametrize(("epoch", "progress"), [(0, 0.0), (85, 0.85)])
def test_ldam(size: str, epoch: int, progress: float) -> None:
    """1e-6: their margins and weights are float32. They divide by the sum of the weights in the batch."""
    cosines = leaf(size, "cosine_logits")
    ldam = make_base(size, Ldam, weight_norm="batch_sum")
    loss = base_losses(size, ldam, 30 * cosines, progress).mean()
    compare(size, f"ldam_maxm0.5_s30_epoch{epoch}of100", loss, [cosines], 1e-6)


@pytest.mark.parametrize(("epoch", "progress"), [(0, 0.0), (90, 0.9)])
def test_ride(size: str, epoch: int, progress: float) -> None:
    """1e-6: their margins, weights and temperatures are float32. GLT's copy of the code: spread 0.02 from 0.8 on."""
    experts = [leaf(size, f"expert{e}_logits") for e in range(3)]
    ride = make_base(size, Ride, temperature_spread=0.02, weight_norm="batch_sum")
    loss = base_losses(size, ride, torch.stack(experts, 1), progress).mean()
    compare(size, f"ride_div-0.2_epoch{epoch}_reweight80", loss, experts, 1e-6)


def test_sade(size: str) -> None:
    """1e-6: their priors are float32, with 1e-9 added inside logarithms. Tied classes are ordered as theirs."""
    experts = [leaf(size, f"expert{e}_logits") for e in range(3)]
    loss = base_losses(size, make_base(size, Sade, ties="order"), torch.stack(experts, 1)).mean()
    compare(size, "tade_tau2", loss, experts, 1e-6)


def test_sade_with_shared_ties(size: str) -> None:
    """The default gives classes of equal counts one reversed prior, theirs gives each its own. No label of the batch is in
    such a class, so the loss agrees to 1e-6; the gradient of the third expert by their logits does to 1e-4.
    """
    experts = [leaf(size, f"expert{e}_logits") for e in range(3)]
    loss = base_losses(size, make_base(size, Sade), torch.stack(experts, 1)).mean()
    toy.assert_golden(loss, "tade_tau2/loss", 1e-6, size)
    for e, gradient in enumerate(torch.autograd.grad(loss, experts)):
        toy.assert_golden(gradient, f"tade_tau2/grad{e}", 1e-4 if e == 2 else 1e-6, size)


@pytest.mark.parametrize(
    ("alpha", "beta", "gamma", "center_temperature", "temperature"),
    [(0.05, 1.0, 1.0, 1.0, 0.2), (0.02, 1.0, 0.7, 1.0, 0.07), (0.05, 0.9, 1.0, 2.0, 0.5)],
)
def test_paco(
    size: str, alpha: float, beta: float, gamma: float, center_temperature: float, temperature: float
) -> None:
    """1e-6: they add 1e-9 to the prior and 1e-12 to the sum of exponentials."""
    golden = toy.golden(size)
    stats = toy.make_stats(golden["class_counts"])
    keys, labels = golden["paco/queue"], golden["paco/queue_labels"]
    queue = Queue(len(labels), keys.shape[1])
    queue.keys_Qd, queue.labels_Q, queue.count = keys, labels, torch.tensor(len(labels))
    query, logits = leaf(size, "paco/q"), leaf(size, "paco/logits_q")
    cfg = Paco.Config(
        sample_weight=alpha,
        center_weight=beta,
        neg_weight=gamma,
        center_temperature=center_temperature,
        temperature=temperature,
        queue_size=len(labels),
    )
    out = ModelOutput(logits, query, query_Bd=query, key_Bd=golden["paco/k"])
    ctx = toy.make_context(stats, queue=queue)
    loss = Paco(cfg, stats, toy.make_dims(keys.shape[1], stats))(out, golden["paco/labels"], ctx).mean()
    name = f"paco_alpha{alpha}_beta{beta}_gamma{gamma}_supt{center_temperature}_T{temperature}"
    compare(size, name, loss, [query, logits], 1e-6)


@pytest.mark.parametrize(("alpha", "smoothing", "temperature"), [(0.05, 0.0, 0.2), (0.02, 0.1, 0.07)])
def test_gpaco(alpha: float, smoothing: float, temperature: float) -> None:
    """1e-6, as for PaCo; gradients by the queries and the logits of both views."""
    golden = toy.golden()
    stats = toy.make_stats(golden["class_counts"])
    keys, labels = golden["paco/queue"], golden["paco/queue_labels"]
    queue = Queue(len(labels), keys.shape[1])
    queue.keys_Qd, queue.labels_Q, queue.count = keys, labels, torch.tensor(len(labels))
    leaves = [leaf("small", f"paco/{name}") for name in ("q", "k", "logits_q", "logits_k")]
    first, second, first_logits, second_logits = leaves
    cfg = Gpaco.Config(sample_weight=alpha, label_smoothing=smoothing, temperature=temperature, queue_size=len(labels))
    other = ModelOutput(second_logits, second, query_Bd=second)
    out = ModelOutput(first_logits, first, query_Bd=first, second=other)
    base = Gpaco(cfg, stats, toy.make_dims(keys.shape[1], stats))
    loss = base(out, golden["paco/labels"], toy.make_context(stats, queue=queue)).mean()
    compare("small", f"gpaco_alpha{alpha}_smooth{smoothing}_T{temperature}", loss, leaves, 1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", ["noeps", "eps"])
def test_dro(size: str, name: str, temperature: float) -> None:
    """1e-9, with 1e-12 under the root that they do not have. Radii are paired with samples as in their code."""
    golden = toy.golden(size)
    stats, z = toy.make_stats(golden["class_counts"]), leaf(size, "features")
    radius = {"radius": 0.0} if name == "noeps" else {"radius_mode": "learned_compat"}
    term = Dro(Dro.Config(temperature=temperature, **radius), stats, toy.make_dims(z.shape[1], stats)).double()
    inputs = [z]
    if name == "eps":
        term.learned_eps_C[0].data = golden[f"dro_eps_T{temperature}/epsilons"].clone()
        inputs.append(term.learned_eps_C[0])
    ctx = toy.make_context(stats, centroids=toy.make_centroids(golden["class_centroids"]))
    loss = term(toy.make_output(features_BD=z), toy.make_batch(golden["labels"]), ctx)
    compare(size, f"dro_{name}_T{temperature}", loss, inputs, 1e-9)


@pytest.mark.parametrize(
    ("center", "name", "tolerance"),
    [
        ("l2", "center", 1e-9),  # theirs is the sum over D, ours the mean
        ("cosine", "center_cos", 1e-9),
        ("triplet", "center_triplet", 1e-6),  # theirs adds 1e-6 to every difference of a distance
    ],
)
def test_centers(size: str, center: str, name: str, tolerance: float) -> None:
    golden = toy.golden(size)
    stats, x = toy.make_stats(golden["class_counts"]), leaf(size, "features")
    cfg = Ifl.Config(num_envs=1, start=0.0, milestones=(), center=center, center_weight=1.0)
    term = Ifl(cfg, stats, toy.make_dims(x.shape[1], stats)).double()
    ctx = toy.make_context(stats, centroids=toy.make_centroids(golden["centers"]))
    loss = term(toy.make_output(golden["logits"], x), toy.make_batch(golden["labels"]), ctx)
    compare(size, name, loss, [x], tolerance, factor=x.shape[1] if center == "l2" else 1)


@pytest.mark.parametrize("ratio", [2.0, 4.0])
def test_environment_weights(size: str, ratio: float) -> None:
    """1e-6: their scores are float32. Theirs sum to 1 in each class or overall; ours have mean 1 there."""
    golden = toy.golden(size)
    labels, scores = golden["env/labels"], golden["env/prob_gt"]
    counts = labels.bincount()
    intra = tail_weights(scores, labels, len(counts), ratio, "published") / counts[labels]
    toy.assert_golden(intra, f"env/intra_scale{ratio}", 1e-6, size)
    inter = tail_weights(scores, torch.zeros_like(labels), 1, ratio, "published") / len(labels)
    toy.assert_golden(inter, f"env/inter_scale{ratio}", 1e-6, size)
