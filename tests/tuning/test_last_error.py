"""What is told of a trial that failed, from what Tune wrote about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.tuning.search import last_error

NO_WORD = "it ended without a word"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Failure # 1 (occurred at 1)\nThe worker died.\nmore\n", "The worker died."),
        (
            'Failure # 1 (at 1)\nold\nFailure # 2 (at 2)\nTrace:\n  File "x.py", line 1\nValueError: no\n',
            "ValueError: no",
        ),
        ("Failure # 1 (occurred at 1)\n", NO_WORD),
        ("", NO_WORD),
    ],
)
def test_the_last_failure_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "error.txt").write_text(text)
    assert last_error(str(tmp_path / "error.txt")) == said


def test_a_file_that_is_missing_or_not_named_ends_nothing(tmp_path: Path) -> None:
    assert last_error(None) == last_error(str(tmp_path / "gone.txt")) == NO_WORD
