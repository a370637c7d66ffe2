"""YAML of strangers: a few lines that mean billions of values, texts that are none, and what PyYAML itself stumbles over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ltcore.config.bounded_yaml import YamlError, load_yaml
from ltcore.config.load import load_run
from ltcore.config.recipes import read_file
from ltcore.config.space import parse_space
from ltcore.config.sweep import read_sweep
from ltcore.errors import ConfigError
from ltcore.limits import MAX_RECIPE_BYTES, MAX_RECIPE_NODES, MAX_TRIALS

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)
BOUND_S = 20.0
"""Of which a busy machine needs a tenth; without bounds it would be hours."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "111111111111 values with all aliases|values with all aliases"),
        (MERGE_BOMB, "values with all aliases"),
        ("a: &a [*a]", "nested deeper than 32"),
        ("[" * 3000, "levels"),
        ("- " * 3000, "levels"),
        ("{a: " * 3000, "levels"),
        ("? " * 3000, "levels"),
        ("[" + "a, " * (MAX_RECIPE_NODES + 1) + "]", f"more than {MAX_RECIPE_NODES} values"),
        ("a: 2001-99-99", "a value cannot be read"),
        ("a: !!int abc", "a value cannot be read"),
        (f"a: {'9' * 5000}", "a value cannot be read"),
        ("? {a: b}\n: c", "a dict is a key|unhashable"),
        ("? 2001-01-01\n: c", "a date is a key"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("a: \0", "control characters are not allowed"),
    ],
)
def test_what_nobody_means_is_refused_soon(text: str, words: str) -> None:
    started = time.monotonic()
    with pytest.raises(YamlError, match=words) as found:
        load_yaml(text)
    assert time.monotonic() - started < BOUND_S and "\n" not in str(found.value)


def test_aliases_and_merged_mappings_mean_what_yaml_says() -> None:
    found = load_yaml("base: &base {x: 1, y: 2}\nown: {<<: *base, y: 3}\nagain: *base")
    assert found == {"base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3}, "again": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("# für\nbase: folder".encode("latin-1"), r"own.yaml:1: byte 3 is no UTF-8. Save the file as UTF-8"),
        ("base: folder\n# für".encode("utf-16"), r"own.yaml:1: byte 0 is no UTF-8"),
        (b"a: 1\n" * (MAX_RECIPE_BYTES // 5 + 1), f"own.yaml is larger than {MAX_RECIPE_BYTES} bytes"),
        (b"- a", "expected a mapping of keys"),
        (b"name: x\nbase: 2001-99-99", "own.yaml: a value cannot be read .*month"),
    ],
)
@pytest.mark.parametrize("kind", ["recipe", "sweep"])
def test_files_are_refused_by_name(tmp_path: Path, kind: str, data: bytes, words: str) -> None:
    (tmp_path / "own.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        read_file(kind, str(tmp_path / "own.yaml"))


def test_a_mark_of_utf_8_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbfbase: folder\n")
    assert load_run(str(tmp_path / "own.yaml")).name == "own"


@pytest.mark.parametrize("name", ["x" * 5000 + ".yaml", "a/" * 3000 + "x.yaml", "a\0.yaml"])
def test_a_name_that_no_file_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be looked up|does not exist"):
        load_run(name)


def test_an_unknown_key_of_a_million_letters_is_refused_soon() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="unknown key"):
        load_run("folder", {"x" * 10**6: "1"})
    assert time.monotonic() - started < BOUND_S


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"sweep.num_trials": 10**9}, "num_trials makes 1000000000 trials, expected at most 100000"),
        ({"sweep.space.train.epochs": f"int:1,{10**30}"}, "int needs two numbers"),
        ({"sweep.space.train.optim.lr": f"log:1,{'9' * 400}"}, "log needs two numbers"),
    ],
)
def test_a_sweep_has_an_upper_size(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_sweep("tune_lpa", {"sweep.recipe": "folder", **overrides})


def test_a_grid_goes_through_no_more_values_than_there_may_be_trials() -> None:
    with pytest.raises(ValueError, match="int:1,1000000000000 has 1000000000000 values, expected at most 100000"):
        parse_space("k", "int:1,1000000000000").enumerate()
    assert len(parse_space("k", f"int:1,{MAX_TRIALS}").enumerate()) == MAX_TRIALS
