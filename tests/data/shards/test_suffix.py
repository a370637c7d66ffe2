"""Endings of names are those of pathlib."""

from __future__ import annotations

from pathlib import PurePosixPath

from hypothesis import example, given
from hypothesis import strategies as st

from ltcore.data.shards.source import suffix_of

PARTS = st.sampled_from(["a", ".", "..", "/", "b.png", ".tar", "é", " ", "c."])


@given(st.lists(PARTS, min_size=1, max_size=6).map("".join))
@example("a/.png")
@example("a.b/c")
@example("a/b..png")
def test_the_suffix_is_that_of_pathlib(path: str) -> None:
    """But for a path that ends with a slash, which is no file, or with dots alone, which pathlib takes away."""
    if path.endswith("/") or path.rpartition("/")[2] in (".", ".."):
        assert suffix_of(path) == ""
    else:
        assert suffix_of(path) == PurePosixPath(path).suffix
