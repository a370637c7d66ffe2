"""DRO-LT against closed forms, a naive loop, and the authors' numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltcore.objective.memory.centroids import ClassCentroids
from ltcore.objective.terms.dro import Dro
from tests.objective import toy

LINE = {"mean": toy.f64([[0], [4]]), "z": toy.f64([[1], [2], [4]]), "y": torch.tensor([0, 0, 1])}


def dro(
    z_BD: Tensor,
    labels: Tensor,
    mean_CD: Tensor,
    memory: ClassCentroids | None = None,
    counts: Tensor | None = None,
    **options: object,
) -> Tensor:
    """Penalty with a shared radius unless told otherwise."""
    stats = toy.make_stats([9] * len(mean_CD) if counts is None else counts)
    cfg = Dro.Config(**({"radius_mode": "shared", "radius": 0.0} | options))
    term = Dro(cfg, stats, toy.make_dims(z_BD.shape[1], stats)).double()
    ctx = toy.make_context(stats, centroids=memory or toy.make_centroids(mean_CD))
    return term(toy.make_output(features_BD=z_BD), toy.make_batch(labels), ctx)


def excess(**options: object) -> float:
    """What the penalty on the line logs beside itself."""
    stats = toy.make_stats([9, 9])
    ctx = toy.make_context(stats, centroids=toy.make_centroids(LINE["mean"], **options))
    term = Dro(Dro.Config(radius_mode="shared", radius=0.5), stats, toy.make_dims(1, stats)).double()
    term(toy.make_output(features_BD=LINE["z"]), toy.make_batch(LINE["y"]), ctx)
    return float(ctx.logged["excess"])


def on_the_line(**options: object) -> Tensor:
    return dro(LINE["z"], LINE["y"], LINE["mean"], **options)


def class_losses(**options: object) -> list[float]:
    """The two class losses on the line: a class whose centroid was never published does not count."""
    return [
        float(dro(LINE["z"], LINE["y"], LINE["mean"], toy.make_centroids(LINE["mean"], counts=seen), **options))
        for seen in ([1, 0], [0, 1])
    ]


def naive(
    z_BD: Tensor, labels: Tensor, mean_CD: Tensor, eps_C: Tensor, temperature: float, denominator: str, slack: int
) -> Tensor:
    """The equation, sample by sample."""
    by_class = []
    for c in labels.unique().tolist():
        anchors = [i for i in range(len(labels)) if labels[i] == c]
        losses = []
        for i in anchors:
            plain = [(z_BD[j] - mean_CD[c]).norm() for j in range(len(labels))]
            slackened = anchors if denominator == "class" else [i]
            scaled = [(d + slack * eps_C[c] * (j in slackened)) / temperature for j, d in enumerate(plain)]
            losses.append(scaled[i] + torch.stack([-s for s in scaled]).exp().sum().log())
        by_class.append(torch.stack(losses).mean())
    return torch.stack(by_class).mean()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"radius": 0.0}, (0.849012, 0.169846)),
        ({"radius": 0.5}, (0.871539, 0.266368)),
        ({"radius": 0.5, "slack": 2}, (0.907606, 0.407606)),
        ({"radius": 1.0}, (0.907606, 0.407606)),
        ({"radius": 0.5, "slack": 2, "denominator": "anchor"}, (1.464235, 0.407606)),
        ({"radius": 1.0, "slack": 2}, (1.051445, 0.861995)),
        ({"radius": 1.0, "slack": 2, "denominator": "anchor"}, (2.251264, 0.861995)),
        ({"radius": 50.0}, (47.5, 48.313262)),
    ],
)
def test_closed_forms(options: dict[str, object], expected: tuple[float, float]) -> None:
    assert class_losses(**options) == pytest.approx(expected, abs=1e-6)
    assert float(on_the_line(**options)) == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_logs_by_how_much_it_exceeds_its_floor() -> None:
    """The floor of a class is log |S_c|, that of the penalty the mean over the classes that count."""
    assert excess() == pytest.approx((0.871539 - math.log(2) + 0.266368 - math.log(1)) / 2, abs=1e-6)
    assert excess(counts=[1, 0]) == pytest.approx(0.871539 - math.log(2), abs=1e-6)
    assert excess(counts=[0, 0]) == 0


@pytest.mark.parametrize(("denominator", "temperature"), [("class", 1.0), ("anchor", 1.0), ("anchor", 0.01)])
def test_at_its_minimum_nothing_is_in_excess(denominator: str, temperature: float) -> None:
    """Each class lies in its centroid, one sample in its own, and the others far away."""
    mean_CD = torch.tensor([[0.0], [1000.0], [2000.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    stats = toy.make_stats([9, 9, 9])
    ctx = toy.make_context(stats, centroids=toy.make_centroids(mean_CD.double()))
    cfg = Dro.Config(radius_mode="shared", radius=1.0, slack=2.0, denominator=denominator, temperature=temperature)
    term = Dro(cfg, stats, toy.make_dims(1, stats))
    loss = term(toy.make_output(features_BD=mean_CD[labels]), toy.make_batch(labels), ctx)
    assert float(ctx.logged["excess"]) == pytest.approx(0, abs=1e-4) and float(loss) > 0.5


def test_a_very_negative_learned_radius_leaves_the_loss_within_the_class() -> None:
    """Reachable only by the authors' learned radii, whose gradient drives them there."""
    stats = toy.make_stats([9, 9])
    term = Dro(Dro.Config(radius_mode="learned_compat"), stats, toy.make_dims(1, stats)).double()
    term.learned_eps_C[0].data.fill_(-50.0)
    ctx = toy.make_context(stats, centroids=toy.make_centroids(LINE["mean"]))
    loss = term(toy.make_output(features_BD=LINE["z"]), toy.make_batch(LINE["y"]), ctx)
    assert float(loss.detach()) == pytest.approx(0.813262 / 2, abs=1e-6)


def test_gradient_pulls_the_far_sample_and_pushes_the_near_one_and_the_other_class() -> None:
    z = LINE["z"].clone().requires_grad_()
    memory = toy.make_centroids(LINE["mean"], counts=[1, 0])  # class 0 alone
    dro(z, LINE["y"], LINE["mean"], memory).backward()
    torch.testing.assert_close(z.grad[:, 0], toy.f64([-0.205385, 0.240504, -0.035119]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("radius", "expected"), [(0.0, 0.035119), (0.5, 0.056612)])
def test_slope_by_the_radius_is_the_mass_of_the_other_classes(radius: float, expected: float) -> None:
    step = 1e-6
    up, down = (class_losses(radius=max(r, 0.0))[0] for r in (radius + step, radius))
    assert (up - down) / step == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("denominator", ["class", "anchor"])
@pytest.mark.parametrize("slack", [1, 2])
def test_equals_a_naive_loop(denominator: str, slack: int) -> None:
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(9, 5, generator=gen, dtype=torch.float64, requires_grad=True)
    mean = torch.randn(6, 5, generator=gen, dtype=torch.float64)
    labels = torch.tensor([3, 0, 3, 1, 0, 3, 5, 1, 3])  # unsorted, class 5 alone, 2 and 4 absent
    counts = torch.tensor([4, 9, 1, 16, 2, 25])
    var = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    memory = toy.make_centroids(mean, var=var)
    options = {"denominator": denominator, "slack": slack, "temperature": 0.7}
    sigma = {"sqrt_n": toy.f64([3.5] * 6), "se": toy.f64(var)}
    for mode, var_C in sigma.items():
        ours = dro(z, labels, mean, memory, counts, radius_mode=mode, radius=0.8, **options)
        eps_C = 0.8 * (var_C / counts).sqrt()
        expected = naive(z, labels, mean, eps_C, 0.7, denominator, slack)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
        ours_grad, expected_grad = (torch.autograd.grad(loss, z)[0] for loss in (ours, expected))
        torch.testing.assert_close(ours_grad, expected_grad, rtol=1e-9, atol=1e-9)


def test_own_deviation_needs_two_observations() -> None:
    """A class seen once takes the pooled deviation: its own is unknown, not zero."""
    counts = torch.tensor([9, 9])
    memory = toy.make_centroids(LINE["mean"], counts=[5, 1], var=[4.0, 0.0])
    single, pooled = (
        dro(LINE["z"], LINE["y"], LINE["mean"], memory, counts, radius_mode=mode, radius=0.5)
        for mode in ("se", "sqrt_n")
    )
    assert torch.equal(single, pooled)


@pytest.mark.parametrize(("seen", "var", "deviation"), [(1, 0.0, 2.0), (2, 9.0, 3.0)])
def test_a_class_seen_once_has_the_radius_of_the_pooled_deviation_and_one_seen_twice_of_its_own(
    seen: int, var: float, deviation: float
) -> None:
    """The radius is that deviation over the root of its number of training images, here one."""
    memory = toy.make_centroids(LINE["mean"], counts=[5, seen], var=[4.0, var])
    ours = dro(LINE["z"], LINE["y"], LINE["mean"], memory, torch.tensor([9, 1]), radius_mode="se", radius=0.5)
    expected = naive(LINE["z"], LINE["y"], LINE["mean"], 0.5 * toy.f64([2.0 / 3.0, deviation]), 1.0, "class", 1)
    assert float(ours) == pytest.approx(float(expected), abs=1e-6)


def test_bounds_the_worst_centroid_in_the_anchor_form_only() -> None:
    labels = torch.tensor([0, 0])
    z, zero = toy.f64([[-1], [1]]), toy.f64([[0], [9]])
    for radius, worst, anchor in [(0.5, 0.813262, 1.313262), (1.0, 1.126928, 2.126928)]:
        exact = max(
            float(naive(z, labels, toy.f64([[mu], [9]]), torch.zeros(2), 1.0, "class", 1)) for mu in (-radius, radius)
        )
        assert exact == pytest.approx(worst, abs=1e-6)
        assert float(dro(z, labels, zero, radius=radius, slack=2)) == pytest.approx(math.log(2), abs=1e-9)
        assert float(dro(z, labels, zero, radius=radius, slack=2, denominator="anchor")) == pytest.approx(
            anchor, abs=1e-6
        )


def test_the_anchor_form_bounds_the_worst_centroid_of_every_sample() -> None:
    """Each sample as a class of its own; the worst centroid within the radius by trying them."""
    own = toy.f64([[0], [0], [4]])  # two classes that share a centroid

    def each(mean_CD: Tensor, **options: object) -> Tensor:
        one_known = (toy.make_centroids(mean_CD, counts=row) for row in torch.eye(3).tolist())
        labels = torch.tensor([0, 1, 2])
        return torch.stack([dro(LINE["z"], labels, mean_CD, memory, **options) for memory in one_known])

    worst = torch.stack([each(own + shift) for shift in torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)]).amax(0)
    torch.testing.assert_close(worst, toy.f64([0.349012, 1.349012, 0.407606]), rtol=0, atol=1e-6)
    bound = each(own, radius=0.5, slack=2, denominator="anchor")
    torch.testing.assert_close(bound, toy.f64([0.758624, 2.169846, 0.407606]), rtol=0, atol=1e-6)
    assert (bound >= worst - 1e-9).all()
    torch.testing.assert_close(each(own, radius=0.5, slack=2), bound)  # alone in its class, both forms are one


def test_rises_and_is_convex_in_the_radius() -> None:
    for denominator in ("class", "anchor"):
        values = torch.stack([on_the_line(radius=r / 4, denominator=denominator) for r in range(12)])
        assert (values.diff() > 0).all() and (values.diff().diff() > -1e-12).all()


def test_invariances() -> None:
    gen = torch.Generator().manual_seed(1)
    z, mean = (torch.randn(7, 4, generator=gen, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 1, 2, 0, 6, 1])
    plain = dro(z, labels, mean, radius=0.4)
    shift, turn = torch.randn(4, generator=gen, dtype=torch.float64), torch.linalg.qr(z[:4])[0]
    torch.testing.assert_close(dro((z + shift) @ turn, labels, (mean + shift) @ turn, radius=0.4), plain)
    torch.testing.assert_close(dro(3 * z, labels, 3 * mean, radius=1.2, temperature=3.0), plain)


def test_the_floor_is_the_log_of_the_class_size() -> None:
    z, mean = toy.f64([[0]] * 4 + [[99]]), toy.f64([[0], [99]])
    assert float(dro(z, torch.tensor([0, 0, 0, 0, 1]), mean)) == pytest.approx(math.log(4) / 2)
    assert float(dro(z[:1], torch.tensor([0]), mean, radius=3.0)) == 0.0  # a batch of one has nothing to tell apart


def test_far_and_identical_points_stay_exact() -> None:
    """Distances of thousands do not underflow, and a sample on its centroid far from the origin has distance zero."""
    z = toy.f64([[5000.0, 1.0], [1.0, 1.0]]).requires_grad_()
    loss = dro(z, torch.tensor([0, 1]), toy.f64([[5000.0, 1.0], [-4000.0, 1.0]]), temperature=0.07)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    near = toy.f64([[1e4, 0.0], [1e4, 1e-3]])
    assert float(dro(near, torch.tensor([0, 0]), near[:1].repeat(2, 1))) == pytest.approx(
        math.log(1 + math.exp(-1e-3)) + 0.5e-3, abs=1e-8
    )


def test_a_sample_on_its_centroid_has_a_finite_gradient() -> None:
    z = LINE["mean"].clone().requires_grad_()
    dro(z, torch.tensor([0, 1]), LINE["mean"], radius=0.5).backward()
    assert z.grad.isfinite().all()


def test_nothing_before_the_first_centroids() -> None:
    z = LINE["z"].clone().requires_grad_()
    loss = dro(z, LINE["y"], LINE["mean"], ClassCentroids(2, 1), radius=1.0)
    loss.backward()
    assert loss == 0
    assert not z.grad.any()


def test_learned_radii_are_paired_with_samples_as_in_the_authors_code() -> None:
    """y = (1, 0, 1, 0): their class-sorted list meets the labels in batch order, so class 0 gets radii 1 and 0."""
    labels = torch.tensor([1, 0, 1, 0])
    stats = toy.make_stats([9, 9])
    term = Dro(Dro.Config(radius_mode="learned_compat"), stats, toy.make_dims(1, stats))
    assert term._radius_labels(labels).tolist() == [1, 1, 0, 0]
    plain = Dro(Dro.Config(), stats, toy.make_dims(1, stats))
    assert plain._radius_labels(labels).tolist() == labels.tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"radius": -1.0}, {"radius_mode": "sqrt"}, {"temperature": 0.0}, {"denominator": "all"}, {"slack": 3}],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must"):
        Dro.Config(**wrong)
