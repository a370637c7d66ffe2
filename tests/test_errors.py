"""The checks that configuration fields share: what they let pass, and that a message starts with the field's name."""

from __future__ import annotations

import errno
import math
import pickle
import re
from concurrent.futures import BrokenExecutor

import pytest

from ltcore import errors
from ltcore.errors import (
    ConfigError,
    NumericError,
    RunFailedError,
    at_least,
    different,
    is_retryable,
    one_of,
    plain_name,
    positive,
    within,
)


def refusal(check, *args, **values):
    with pytest.raises(ValueError) as error:
        check(*args, **values)
    return str(error.value)


def test_bounds_are_finite_and_null_passes():
    positive(a=1, b=1e-300, c=None)
    at_least(2, a=2, b=2.5, c=None)
    assert refusal(positive, lr=0.0) == "lr must be a finite number > 0, got 0.0"
    assert refusal(positive, a=1, b=0) == "b must be > 0, got 0"  # a whole number is finite anyway
    assert refusal(at_least, 2, trials=1) == "trials must be >= 2, got 1"
    assert refusal(at_least, 0.5, share=0.25) == "share must be a finite number >= 0.5, got 0.25"
    for value in (math.nan, math.inf, -math.inf):
        assert refusal(positive, x=value).startswith("x must be")
        assert refusal(at_least, -1, x=value).startswith("x must be")


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5), (-1e-9, 1, math.nan)),
        ("(0, 1]", (1e-9, 1), (0, 1.1, math.inf)),
        ("[-1, 1]", (-1, 1), (-1.1, 1.1)),
        ("(0, 1)", (0.5,), (0, 1)),
    ],
)
def test_intervals_are_those_of_mathematics(interval, inside, outside):
    for value in (*inside, None):
        within(interval, x=value)
    for value in outside:
        assert refusal(within, interval, x=value) == f"x must be in {interval}, got {value}"
        assert refusal(within, interval, "a share", x=value) == f"x must be a share in {interval}, got {value}"


def test_choices_and_lists():
    one_of(("a", "b"), x="a", y=None)
    different("names", x=("a", "b"), y=None)
    assert refusal(one_of, ("a", "b"), x="c") == "x must be one of a, b, got 'c'"
    assert refusal(one_of, (1, 2), x=3) == "x must be one of 1, 2, got 3"
    assert refusal(different, "names", x=()) == "x must be one or more different names, got []"
    assert refusal(different, "names", x=("a", "a")) == "x must be one or more different names, got ['a', 'a']"


def test_names_are_fit_for_folders():
    for name in ("a", "_a", "0.5-b_c", "é"):
        plain_name(name=name)
    for name in ("", ".a", "-a", "a/b", "a b", "a\n"):
        assert re.match(r"name must consist of .*, got ", refusal(plain_name, name=name))


FINAL = {"ConfigError", "NumericError", "PluginError"}


def test_every_error_of_ours_is_retryable_or_final():
    ours = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {name for name, kind in ours.items() if not kind.retryable} == FINAL


class InAnotherProcessError(Exception):
    """As Ray wraps what a task raised."""

    def __init__(self, cause):
        super().__init__("somewhere else")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (RuntimeError("NCCL error"), True),
        (BrokenExecutor("a process died"), True),
        (InAnotherProcessError(ConfigError("train.lr")), False),
        (InAnotherProcessError(InAnotherProcessError(NumericError("nan"))), False),
        (InAnotherProcessError(OSError("gone")), True),
        (InAnotherProcessError("words"), True),
        (RunFailedError("it said so", retryable=False), False),
        (RunFailedError("it said so", retryable=True), True),
    ],
)
def test_which_errors_of_others_may_be_gone_the_next_time(error, expected):
    assert is_retryable(error) is expected


def test_a_chain_of_causes_that_bites_its_tail_ends():
    one, other = InAnotherProcessError(None), InAnotherProcessError(None)
    one.cause, other.cause = other, one
    assert is_retryable(one)


def test_what_a_run_said_survives_the_way_between_processes():
    there = pickle.loads(pickle.dumps(RunFailedError("NumericError: nan", retryable=False)))
    assert (str(there), there.retryable) == ("NumericError: nan", False)
