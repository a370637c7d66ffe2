"""YAML of strangers: plain values alone, each key once, and no more than a recipe or a table of classes has."""

from __future__ import annotations

import itertools
from typing import Any

import yaml
from yaml.composer import Composer

from ltcore.limits import MAX_RECIPE_DEPTH, MAX_RECIPE_NODES

_MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """What is wrong with a text, without its name."""

    line = 0
    """Where, from 1 on; 0 where that is not known."""


def load_yaml(text: str) -> Any:
    """Parses YAML. Raises YamlError for anything that is none, or that is larger or deeper than any recipe."""
    try:
        return yaml.load(text, Loader=_Loader)  # a safe one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        found = YamlError(" ".join(str(getattr(error, "problem", None) or error).split()))
        found.line = mark.line + 1 if mark else 0
        raise found from None
    except RecursionError:
        raise YamlError(f"nested deeper than {MAX_RECIPE_DEPTH} levels") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # of a date that is none, an odd tag, ...
        raise YamlError(f"a value cannot be read ({error}). Put it in quotes if it is a text") from None


class _Loader(Composer, yaml.CSafeLoader):
    """YAML's safe types, no key twice, and no more than a recipe may have, with all aliases unfolded.

    libyaml splits the text, in an eighth of the time; what is bounded here is made of its events one by one.
    """

    def __init__(self, text: str) -> None:
        yaml.CSafeLoader.__init__(self, text)
        Composer.__init__(self)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > MAX_RECIPE_DEPTH or self._nodes > MAX_RECIPE_NODES:
            few = f"{MAX_RECIPE_NODES} values and {MAX_RECIPE_DEPTH} levels of them"
            event: Any = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"more than {few}", problem_mark=event.start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _refuse_large(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # whose keys give way to those that stand here
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                kind = type(key).__name__
                raise yaml.MarkedYAMLError(
                    problem=f"a {kind} is a key, expected a text", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refuse_large(root: yaml.Node) -> None:
    """Raises YAMLError where values, counted anew for each alias of them, are too many or nested too deeply.

    An alias of aliases of aliases makes billions out of a few lines, as soon as something goes through all of them.
    """
    sizes: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > MAX_RECIPE_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_RECIPE_DEPTH} levels", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            is_list = isinstance(node, yaml.SequenceNode)
            inner = node.value if is_list else itertools.chain(*node.value)
            sizes[id(node)] = 1 + sum(count(each, depth + 1) for each in inner)
        return sizes[id(node)]

    if (nodes := count(root, 0)) > MAX_RECIPE_NODES:
        raise yaml.YAMLError(f"it has {nodes} values with all aliases, expected at most {MAX_RECIPE_NODES}")
