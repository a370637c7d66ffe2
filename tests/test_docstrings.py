"""Public names have docstrings, and those of functions begin with a verb and a short sentence."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ltcore
import ltcore.evaluation
import ltcore.models
import ltcore.objective
import ltcore.training

PACKAGES = (ltcore.objective, ltcore.models, ltcore.evaluation, ltcore.training)
"""Packages whose public names all have docstrings; an override may inherit its docstring."""
ROOT = Path(ltcore.__file__).parent
NOT_VERB_FIRST = {"cli/main.py"}
"""Modules whose docstrings take another form: those of the commands are the text of ``--help``."""
MOST_WORDS = 25
"""Longest first sentence of a docstring; about 12 words read best."""
NOT_VERBS = {"This", "Its", "Always", "As", "Less", "Plus", "Whereas"}
NOUNS = {"Images", "Values", "Keys", "Metrics", "Trials", "Steps"}
"""Plurals that would pass for verbs."""


def modules() -> Iterator[str]:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.ispkg:
                yield found.name


def public(owner: ModuleType | type, module: str) -> Iterator[tuple[str, Any]]:
    """Yields (qualified name, object) of what ``module`` itself defines under ``owner``, classes before their members."""
    for name, value in vars(owner).items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            yield value.__qualname__, value
            yield from public(value, module)
        elif inspect.isfunction(value) and "<" not in value.__qualname__:
            yield value.__qualname__, getattr(owner, name)


@pytest.mark.parametrize("module", modules())
def test_public_names_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)
    assert (loaded.__doc__ or "").strip(), f"{module} does not say what it is"
    bare = [name for name, value in public(loaded, module) if not (inspect.getdoc(value) or "").strip()]
    assert not bare, f"{module}: no docstring for {', '.join(bare)}"


def function_docs(file: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the public functions and methods of a module that have one."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif doc := ast.get_docstring(node):
                yield f"{prefix}{node.name}", doc

    yield from walk(ast.parse(file.read_text(encoding="utf-8")).body, "")


def first_sentence(doc: str) -> list[str]:
    """Words of the first sentence."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s", paragraph, maxsplit=1)[0].split()


def is_verb(word: str) -> bool:
    """Whether the word can be a verb in the third person singular."""
    word = word.removesuffix(",")
    return word.isalpha() and word[0].isupper() and word.endswith("s") and word not in NOT_VERBS | NOUNS


def verb_first_modules() -> list[str]:
    names = {file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py")}
    return sorted(names - NOT_VERB_FIRST)


@pytest.mark.parametrize("module", verb_first_modules())
def test_docstrings_of_functions_begin_with_a_verb_and_a_short_sentence(module: str) -> None:
    docs = {name: first_sentence(doc) for name, doc in function_docs(ROOT / module)}
    other = [f"{name}: {' '.join(words)}" for name, words in docs.items() if not is_verb(words[0])]
    assert not other, f"{module}: begin with a verb such as 'Returns': {'; '.join(other)}"
    long = [f"{name} ({len(words)} words)" for name, words in docs.items() if len(words) > MOST_WORDS]
    assert not long, f"{module}: shorten the first sentence to about 12 words: {', '.join(long)}"
