"""Strings as columns: those of files that are no text, and the order and the doubles that lists of them have."""

import os
import random

import numpy as np
import pytest

from ltcore.data.datasets.columns import Texts

ODD = [
    os.fsdecode(b"caf\xe9.png"),
    os.fsdecode(b"\xff\x80"),
    "\ud800",
    "é",
    "\U0001f600",
    "",
    "\uffff",
    "a/b",
    "a-b",
    "a",
]


def test_any_string_comes_back_in_the_order_of_sorted():
    words = ODD * 2
    random.Random(0).shuffle(words)
    texts = Texts.of(words)
    assert list(texts) == words and texts[-1] == words[-1] and list(texts[3:1:-1]) == words[3:1:-1]
    assert [texts[p] for p in texts.order()] == sorted(words)
    by_word = sorted(range(len(words)), key=words.__getitem__)
    assert texts.order().tolist() == by_word, "equal ones stay in their order"
    assert list(texts.take(texts.order())) == sorted(words)
    with pytest.raises(IndexError):
        texts[len(words)]


def test_long_columns_are_read_in_parts(monkeypatch):
    monkeypatch.setattr("ltcore.data.datasets.columns.CHUNK", 3)
    assert [list(Texts.of(ODD[:count])) for count in range(8)] == [ODD[:count] for count in range(8)]


@pytest.mark.parametrize("words", [[], ["a"], ["a", "a"], ["b", "a", "b", "c", "a", "b"], ODD])
def test_doubles_are_found(words):
    assert Texts.of(words).repeated().tolist() == [words.count(word) > 1 for word in words]
    assert list(Texts.of(words).take(np.arange(0))) == []
