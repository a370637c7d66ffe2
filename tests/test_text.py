"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from ltcore.text import counted


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
