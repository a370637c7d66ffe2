import itertools
import math
from collections import Counter

import pytest

from ltcore.config.space import SpaceSpec, grid_points, parse_scalar, parse_space, sample_space
from ltcore.config.sweep import SweepConfig
from ltcore.errors import ConfigError
from ltcore.rng import hash64

SPACE = {
    "a": parse_space("a", {"log": [0.02, 1.0]}),
    "b": parse_space("b", {"uniform": [-1, 3]}),
    "c": parse_space("c", {"int": [2, 5]}),
    "d": parse_space("d", {"choice": ["x", "y", None, True]}),
}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"log": [0.02, 1.0]}, "log:0.02,1.0"),
        ({"log": ["1e-4", 1]}, "log:0.0001,1"),
        ({"uniform": [0, 0.5]}, "uniform:0,0.5"),
        ({"int": [1, 4]}, "int:1,4"),
        ({"choice": [1, "a", None, True]}, "choice:1,a,null,true"),
        ({"grid": [0.1]}, "grid:0.1"),
    ],
)
def test_both_spellings_are_the_same_spec(raw, text):
    spec = parse_space("k", raw)
    assert str(spec) == text
    assert parse_space("k", text) == spec
    assert parse_space("k", spec) is spec


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"log": [0, 1]}, "log needs numbers > 0"),
        ({"log": [1, 0.1]}, "the lower one first"),
        ({"uniform": [1, 1]}, "the lower one first"),
        ({"uniform": [0, math.inf]}, "needs two numbers"),
        ({"uniform": [0, 1, 2]}, "needs two numbers"),
        ({"uniform": [False, True]}, "needs two numbers"),
        ({"int": [0.5, 2]}, "int needs whole numbers"),
        ({"choice": []}, "list of different values"),
        ({"choice": [1, 1]}, "list of different values"),
        ({"chioce": [1, 2]}, "unknown kind 'chioce'. Did you mean choice"),
        ({"log": 3}, "is not a search space. Write {log: "),
        ({"log": [1, 2], "int": [1, 2]}, "is not a search space"),
        ("0.5", "is not a search space"),
        (0.5, "is not a search space"),
    ],
)
def test_wrong_specs_name_the_key(raw, message):
    with pytest.raises(ConfigError, match=r"^sweep.space.train.optim.lr") as caught:
        parse_space("train.optim.lr", raw)
    assert message in str(caught.value)


def test_scalars_of_the_command_line():
    assert [parse_scalar(t) for t in ("null", "True", "false", "3", "3.0", "1e-3", "abc")] == [
        None,
        True,
        False,
        3,
        3.0,
        1e-3,
        "abc",
    ]
    assert isinstance(parse_scalar("3"), int) and isinstance(parse_scalar("3.0"), float)


@pytest.mark.parametrize("n", [1, 3, 8, 16])
def test_every_stratum_of_every_range_is_hit_once(n):
    trials = [sample_space(SPACE, t, num_trials=n, seed=5) for t in range(n)]
    log = sorted(int(n * math.log(v["a"] / 0.02) / math.log(50)) for v in trials)
    linear = sorted(int(n * (v["b"] + 1) / 4) for v in trials)
    assert log == linear == list(range(n))


def test_lists_and_whole_numbers_are_balanced():
    trials = [sample_space(SPACE, t, num_trials=8, seed=1) for t in range(8)]
    assert Counter(v["c"] for v in trials) == {2: 2, 3: 2, 4: 2, 5: 2}
    assert Counter(v["d"] for v in trials) == {"x": 2, "y": 2, None: 2, True: 2}
    assert all(type(v["c"]) is int for v in trials)


def test_a_trial_depends_on_seed_number_and_key_alone():
    one = sample_space(SPACE, 3, num_trials=8, seed=0)
    assert sample_space(dict(reversed(SPACE.items())), 3, num_trials=8, seed=0) == one
    assert sample_space({"a": SPACE["a"]}, 3, num_trials=8, seed=0)["a"] == one["a"]
    assert sample_space(SPACE, 3, num_trials=8, seed=1) != one
    again = sample_space(SPACE, 11, num_trials=8, seed=0)  # the same place in the next hypercube
    assert again != one and set(again) == set(SPACE)


def test_a_sampled_value_against_the_definition():
    """Trial t gets the stratum at place t of the strata sorted by their hash, and a point inside by another hash."""
    order = sorted(range(4), key=lambda s: hash64(9, "stratum", "b", 0, s))
    for trial in range(4):
        u = (order[trial] + (hash64(9, "inside", "b", trial) >> 11) / 2**53) / 4
        expected = float(f"{-1 + 4 * u:.6g}")
        assert sample_space(SPACE, trial, num_trials=4, seed=9)["b"] == expected


def test_values_stay_inside_their_range():
    spec = SpaceSpec("log", (0.1234567, 0.1234568))
    assert all(0.1234567 <= spec.at(u / 50) <= 0.1234568 for u in range(50))
    assert SPACE["c"].at(0.0) == 2 and SPACE["c"].at(math.nextafter(1, 0)) == 5


def test_grid_is_the_product_in_reading_order():
    space = {"p": parse_space("p", {"grid": [1, 2]}), "q": parse_space("q", {"int": [0, 2]})}
    assert grid_points(space) == [{"p": p, "q": q} for p, q in itertools.product([1, 2], [0, 1, 2])]
    sweep = SweepConfig(name="s", recipe="r", space=space, search="grid")
    assert sweep.size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space is empty"),
        ({"overrides": {"a": 1}}, "space and overrides both set a"),
        ({"search": "bayes"}, "search must be one of random, grid, tpe, pbt, variants, got 'bayes'"),
        ({"metric": "test/top1"}, "metric must be one of val/balanced_accuracy, val/top1"),
        ({"grace_fraction": 0.0}, r"grace_fraction must be in \(0, 1\]"),
        ({"reduction_factor": 1}, "reduction_factor must be >= 2, got 1"),
        ({"retrain_seeds": -1}, "retrain_seeds must be >= 0"),
        ({"budget_s": 0.0}, "budget_s must be a finite number > 0, got 0.0"),
        ({"stall_s": 0.0}, "stall_s must be a finite number > 0"),
        ({"search": "tpe"}, "num_trials=8 is too few for search=tpe"),
        ({"search": "grid"}, "space.a: log:0.02,1.0 has no end of values"),
        ({"search": "pbt"}, "mutable is empty"),
        ({"mutable": ("z",)}, "mutable names z, which space does not vary"),
        ({"space": {"a": SpaceSpec("grid", (1, 2))}}, "grid needs search=grid; with search=random write choice"),
        ({"name": "a/b"}, "name must consist of letters"),
    ],
)
def test_wrong_sweeps_are_refused_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**({"name": "s", "recipe": "r", "space": SPACE} | changes))


def test_values_with_commas_keep_their_text():
    """As lists of layers or of milestones are."""
    lists = [[0.5, 0.7], [0.8, 0.9], [0.6]]
    for raw, text in (
        ({"choice": lists}, "choice:[0.5,0.7],[0.8,0.9],0.6"),
        ({"choice": ["final", "stage2,final"]}, "choice:final,[stage2,final]"),
    ):
        spec = parse_space("x", raw)
        assert str(spec) == text and parse_space("x", text) == spec
    assert parse_space("x", {"choice": lists}).values == ("0.5,0.7", "0.8,0.9", 0.6)


def test_other_brackets_are_of_the_value():
    """Which the key then takes or refuses."""
    assert parse_space("x", "choice:[0.5,0.7").values == ("[0.5", 0.7)
    assert parse_space("x", "choice:[1]x,a[2]").values == ("[1]x", "a[2]")
