"""Methods of stage 2 by hand-made features: closed forms, what is left alone, and the class-aware order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ltcore.config.stage2 import Stage2Config
from ltcore.models.heads import CosineHead
from ltcore.objective.class_weights import effective_weights
from ltcore.objective.registry import STAGE2
from ltcore.objective.stage2.method import FeatureSet, expert_logits
from ltcore.objective.stage2.sampler import class_aware_rows, shuffled_rows
from ltcore.objective.stage2.weight_balance import radius, shorten_
from ltcore.rng import generator
from ltcore.shots import shot_groups_by_rank
from ltcore.stats import ClassStats

COUNTS = (12, 6, 3)
LABELS_N = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))
STATS = ClassStats(torch.tensor(COUNTS), shot_groups_by_rank(COUNTS))


def features(dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(len(LABELS_N), dim, generator=generator(seed, "features")).relu()


def linear_heads(experts: int = 1, dim: int = 4) -> nn.ModuleList:
    heads = nn.ModuleList(nn.Linear(dim, 3) for _ in range(experts))
    for number, parameter in enumerate(heads.parameters()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator(number, "head")))
    return heads


def head_of(weight: list[list[float]], bias: list[float]) -> nn.ModuleList:
    head = nn.Linear(len(weight[0]), len(weight))
    head.weight.data.copy_(torch.tensor(weight))
    head.bias.data.copy_(torch.tensor(bias))
    return nn.ModuleList([head])


def method(name: str, heads: nn.ModuleList, stats: ClassStats = STATS, seed: int = 0, **options: Any) -> Any:
    return STAGE2[name].build(STAGE2[name].build.Config(**options), heads, stats, seed)


# ---- tau-normalization


@pytest.mark.parametrize(("tau", "logits"), [(0.0, (3, 1)), (0.5, (math.sqrt(3), 1)), (1.0, (1, 1))])
def test_tau_norm_closed_form(tau: float, logits: tuple[float, float]) -> None:
    heads = head_of([[3.0, 0.0], [0.0, 1.0]], [5.0, -5.0])
    two = ClassStats(torch.tensor([2, 1]), ("many", "few"))
    found = method("tau_norm", heads, two, tau=(0.7, tau)).solve_(1, FeatureSet(torch.ones(1, 2), torch.zeros(1)))
    assert found == {"stage2/tau": tau}
    assert expert_logits(heads, torch.ones(1, 2))[0, 0].tolist() == pytest.approx(logits, abs=1e-6)


def test_tau_zero_with_the_bias_is_stage_1_bit_for_bit_and_a_row_of_zeros_stays_one() -> None:
    heads, first = linear_heads(2), linear_heads(2)
    for copy in (heads, first):
        copy[0].weight.data[1] = 0
    tau = method("tau_norm", heads, tau=(1.9, 0.0), keep_bias=True)
    tau.solve_(0, None)
    assert heads[0].weight[1].tolist() == [0.0] * 4
    assert torch.equal(heads[0].bias, first[0].bias) and not torch.equal(heads[1].weight, first[1].weight)
    tau.solve_(1, None)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), first.parameters(), strict=True))


# ---- learnable weight scaling


def test_lws_begins_as_stage_1_exactly_and_learns_one_factor_per_class() -> None:
    heads, first, z_ND = linear_heads(2), linear_heads(2), features(8)
    lws = method("lws", heads)
    assert torch.equal(lws.logits(z_ND), expert_logits(first, z_ND))
    lws.export_()
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), first.parameters(), strict=True))
    assert [name for name, p in lws.named_parameters() if p.requires_grad] == ["scale_EC"]
    assert lws.scale_EC.shape == (2, 3)
    lws.scale_EC.data.copy_(torch.tensor([[2.0, 1.0, 0.5], [1.0, -1.0, 4.0]]))
    lws.export_()
    torch.testing.assert_close(expert_logits(heads, z_ND), lws.logits(z_ND))
    torch.testing.assert_close(heads[0].bias, first[0].bias * torch.tensor([2.0, 1.0, 0.5]))


# ---- nearest class mean


def test_ncm_by_cosine_has_the_mean_directions_and_does_not_see_lengths() -> None:
    z_ND = features()
    heads, scaled = (nn.ModuleList([CosineHead(4, 3, 16.0)]) for _ in range(2))
    method("ncm", heads).solve_(0, FeatureSet(z_ND, LABELS_N))
    lengths_N1 = 2.0 ** torch.arange(-10, 11)[:, None]  # powers of two scale without rounding
    method("ncm", scaled).solve_(0, FeatureSet(z_ND * lengths_N1, LABELS_N))
    torch.testing.assert_close(heads[0].weight, scaled[0].weight, rtol=1e-6, atol=1e-7)
    unit_ND = z_ND / z_ND.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for c in range(3):
        torch.testing.assert_close(heads[0].weight[c], unit_ND[LABELS_N.eq(c)].mean(0))
    logits_NC, seen_NC = (expert_logits(heads, z)[:, 0] for z in (z_ND, 1000 * z_ND))
    assert torch.equal(logits_NC.argmax(1), seen_NC.argmax(1))
    assert logits_NC.abs().max() <= 16.0001


def test_ncm_by_distance_is_the_nearest_mean() -> None:
    z_ND, heads = features(8), linear_heads(2)
    method("ncm", heads, metric="euclidean").solve_(0, FeatureSet(z_ND, LABELS_N))
    for number, head in enumerate(heads):
        share_ND = z_ND[:, 4 * number : 4 * number + 4]
        means_CD = torch.stack([share_ND[LABELS_N.eq(c)].mean(0) for c in range(3)])
        distance_NC = torch.cdist(share_ND, means_CD)
        assert torch.equal(head(share_ND).argmax(1), distance_NC.argmin(1))
        same_NC = head(share_ND) - share_ND.square().sum(1, keepdim=True) / 2
        torch.testing.assert_close(same_NC, -distance_NC.square() / 2)


# ---- re-trained classifiers


def test_crt_forgets_stage_1_and_follows_the_seed() -> None:
    drawn = []
    for start, seed in ((1.0, 0), (5.0, 0), (1.0, 1)):
        heads = linear_heads(2)
        heads[0].weight.data.mul_(start)
        method("crt", heads, seed=seed)
        drawn.append(heads)
    a, b, other = drawn
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a[0].weight, other[0].weight) and not torch.equal(a[0].weight, a[1].weight)
    assert a[0].bias.abs().max() == 0


def test_crt_starts_with_the_published_spread_of_weights() -> None:
    head = nn.ModuleList([nn.Linear(400, 300)])
    method("crt", head)
    assert float(head[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_the_classifier_stage_of_dro_begins_where_stage_1_ended() -> None:
    heads, first = linear_heads(), linear_heads()
    dro = method("dro", heads)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), first.parameters(), strict=True))
    assert (dro.cfg.epochs, dro.cfg.lr, dro.cfg.schedule, dro.cfg.per_class) == (20, 0.01, "constant", 4)


@pytest.mark.parametrize("name", ["crt", "lws", "dro"])
def test_an_epoch_of_the_balanced_stream_weighs_every_class_alike(name: str) -> None:
    """12 draws of each class are 1, 2 and 4 of each of its samples: the mean over classes of their mean losses."""
    z_ND = features()
    trained = method(name, linear_heads(), per_class=4)
    rows = trained.rows(0, LABELS_N)
    assert len(rows) == 36
    loss = trained(z_ND[rows], LABELS_N[rows])
    per_class = [trained(z_ND[LABELS_N.eq(c)], LABELS_N[LABELS_N.eq(c)]) for c in range(3)]
    assert float(loss.detach()) == pytest.approx(float(sum(per_class).detach()) / 3, rel=1e-5)


def test_experts_are_classifiers_of_their_own() -> None:
    """The loss of two is the sum of their losses, and the gradient of one does not depend on the other."""
    z_ND, heads = features(8), linear_heads(2)
    both = method("dro", heads)
    both(z_ND, LABELS_N).backward()
    total = 0.0
    for number in range(2):
        alone = nn.ModuleList([linear_heads(2)[number]])
        loss = method("dro", alone)(z_ND[:, 4 * number : 4 * number + 4], LABELS_N)
        loss.backward()
        total += float(loss.detach())
        torch.testing.assert_close(heads[number].weight.grad, alone[0].weight.grad)
    assert float(both(z_ND, LABELS_N).detach()) == pytest.approx(total, rel=1e-6)


# ---- weight balancing


def test_max_norm_closed_form() -> None:
    weight_CD = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.6, 0.8], [2.0, 0.0]])
    assert radius(weight_CD, 0.25) == 2.0
    assert radius(weight_CD, None) == math.inf
    shortened = weight_CD.clone()
    shorten_(shortened, 2.0)
    assert shortened[0].tolist() == pytest.approx([1.2, 1.6])
    assert torch.equal(shortened[1:], weight_CD[1:])
    shorten_(shortened, math.inf)
    assert torch.equal(shortened[1:], weight_CD[1:])


def test_weight_balance_projects_after_a_step_and_starts_from_stage_1() -> None:
    heads, first = linear_heads(2), linear_heads(2)
    balance = method("weight_balance", heads, max_norm=0.5)
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), first.parameters(), strict=True))
    biases = [head.bias.detach().clone() for head in heads]
    balance.project_()
    for head, before, bias_C in zip(heads, first, biases, strict=True):
        lengths = before.weight.detach().norm(dim=1)
        limit = float(lengths.min() + lengths.max()) / 2
        torch.testing.assert_close(head.weight.detach().norm(dim=1), lengths.clamp_max(limit))
        assert torch.equal(head.bias, bias_C), "a bias is no class weight"


def test_the_loss_of_weight_balance_is_cross_entropy_times_the_effective_number() -> None:
    z_ND = features()
    balance = method("weight_balance", linear_heads(), beta=0.9)
    logits_NC = expert_logits(linear_heads(), z_ND)[:, 0]
    loss_N = nn.functional.cross_entropy(logits_NC, LABELS_N, reduction="none")
    expected = (effective_weights(STATS.counts_C, 0.9)[LABELS_N] * loss_N).mean()
    torch.testing.assert_close(balance(z_ND, LABELS_N), expected.float())
    rows = balance.rows(3, LABELS_N)
    assert torch.equal(rows.sort().values, torch.arange(len(LABELS_N))), "the natural stream"


# ---- the class-aware order


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    per_class=st.integers(1, 5),
    max_passes=st.one_of(st.none(), st.floats(0.05, 6)),
    seed=st.integers(0, 50),
    epoch=st.integers(0, 5),
)
def test_class_aware_order(counts: list[int], per_class: int, max_passes: float | None, seed: int, epoch: int) -> None:
    labels_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels_N = labels_N[torch.randperm(len(labels_N), generator=generator(seed, "mix"))]
    options: dict[str, Any] = {"seed": seed, "epoch": epoch, "per_class": per_class, "max_passes": max_passes}
    rows = class_aware_rows(labels_N, **options)
    assert torch.equal(rows, class_aware_rows(labels_N, **options)), "a pure function"
    longest = max(counts) * len(counts)
    expected = longest if max_passes is None else max(1, min(longest, int(max_passes * len(labels_N))))
    assert rows.shape == (expected,) and rows.dtype == torch.int64
    drawn_L, block = labels_N[rows], per_class * len(counts)
    for start in range(0, expected - block + 1, block):
        runs = drawn_L[start : start + block].view(len(counts), per_class)
        assert (runs == runs[:, :1]).all(), "a run of one class"
        assert runs[:, 0].sort().values.tolist() == list(range(len(counts))), "every class once per cycle"
    times_N = rows.bincount(minlength=len(labels_N))
    for c in range(len(counts)):
        times = times_N[labels_N == c]
        assert times.max() - times.min() <= 1, "a shuffled cycle of its own"
    if max_passes is None and len(rows) % block == 0:
        assert drawn_L.bincount().unique().tolist() == [max(counts)]


def test_the_order_of_an_epoch_is_its_own_and_shuffled() -> None:
    labels_N = torch.repeat_interleave(torch.arange(10), 20)
    orders = [class_aware_rows(labels_N, seed=s, epoch=e, per_class=2) for s, e in ((0, 0), (0, 1), (1, 0))]
    orders += [shuffled_rows(200, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    for a in range(len(orders)):
        assert not any(torch.equal(orders[a], other) for other in orders[a + 1 :])
    classes = labels_N[orders[0]].view(-1, 10, 2)[:, :, 0]
    assert len({tuple(row) for row in classes.tolist()}) == len(classes), "classes come in another order each time"


def test_the_epoch_of_cifar100_lt_has_50000_draws() -> None:
    counts = torch.tensor([int(500 * 0.01 ** (c / 99)) for c in range(100)])
    labels_N = torch.repeat_interleave(torch.arange(100), counts)
    rows = class_aware_rows(labels_N, seed=0, epoch=0, per_class=4)
    assert len(rows) == 50_000 and labels_N[rows].bincount().unique().tolist() == [500]
    assert len(class_aware_rows(labels_N, seed=0, epoch=0, per_class=4, max_passes=4)) == 4 * 10_847


def test_a_class_without_a_sample_is_left_out() -> None:
    rows = class_aware_rows(torch.tensor([2, 0, 2, 5]), seed=0, epoch=0)
    assert len(rows) == 6 and rows.bincount().tolist() == [1, 2, 1, 2]


# ---- options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tau_norm", {"tau": ()}, "tau must be one or more finite numbers >= 0"),
        ("tau_norm", {"tau": (0.5, -1.0)}, "tau must be"),
        ("ncm", {"metric": "cos"}, "metric must be one of cosine, euclidean, got 'cos'"),
        ("crt", {"epochs": 0}, "epochs must be >= 1"),
        ("crt", {"lr": float("inf")}, "lr must be"),
        ("lws", {"momentum": 1.0}, "momentum must be in"),
        ("dro", {"weight_decay": -1.0}, "weight_decay must be"),
        ("dro", {"schedule": "step"}, "schedule must be one of cosine, constant"),
        ("crt", {"per_class": 0}, "per_class must be >= 1"),
        ("crt", {"max_passes": 0.0}, "max_passes must be"),
        ("weight_balance", {"beta": 1.0}, "beta must be in"),
        ("weight_balance", {"max_norm": -0.1}, "max_norm must be"),
    ],
)
def test_wrong_options_name_themselves(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        STAGE2[name].build.Config(**options)


def test_options_of_a_method_that_is_not_chosen_are_refused() -> None:
    from ltcore.objective.registry import Stage2Options

    options = Stage2Options(lws=STAGE2["lws"].build.Config(epochs=3))
    assert Stage2Config(method="lws", options=options).rounds == 3
    with pytest.raises(
        ValueError, match=r"^options.lws has no effect with method='crt': remove it or set stage2.method=lws"
    ):
        Stage2Config(method="crt", options=options)
    with pytest.raises(
        ValueError, match=r"^method must be one of crt, dro, lws, ncm, tau_norm, weight_balance, got 'x'"
    ):
        Stage2Config(method="x")
    with pytest.raises(ValueError, match=r"^feature_dtype must be one of float32, float16"):
        Stage2Config(feature_dtype="bfloat16")
