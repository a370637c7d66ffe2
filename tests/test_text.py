"""Numbers with their nouns, and the beginning of values."""

from __future__ import annotations

import pytest

from ltcore.text import counted, glimpse


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "epoch", "1 epoch"),
        (0, "epoch", "0 epochs"),
        (2000, "image", "2,000 images"),
        (1.0, "CPU", "1 CPU"),
        (0.5, "CPU", "0.5 CPUs"),
        (2, "class", "2 classes"),
        (3, "batch", "3 batches"),
        (1, "training image", "1 training image"),
    ],
)
def test_one_is_singular(number: float, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("name", "'name'"),
        ([1, {"a": None}], "[1, {'a': None}]"),
        (["x" * 50, "y" * 50], f"['{'x' * 50}', 'yyyy..."),
        (float("inf"), "inf"),
    ],
)
def test_a_glimpse_is_the_beginning_of_a_value(value: object, text: str) -> None:
    assert glimpse(value) == text


def test_a_glimpse_looks_at_no_more_than_it_shows() -> None:
    spelled: list[int] = []

    class Value:
        def __repr__(self) -> str:
            spelled.append(1)
            return "a value of somebody"

    assert glimpse([[Value() for _ in range(1000)] for _ in range(1000)]).startswith(
        "[[a value of somebody, a value of"
    )
    assert len(spelled) < 100
