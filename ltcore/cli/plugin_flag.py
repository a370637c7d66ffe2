"""``--plugin MODULE``, which every command takes: it makes the module's parts known while the command line is read.

Nothing that parsers themselves offer depends on plugins, and keys are looked up later, so the place of the flag among the
others means nothing.
"""

from __future__ import annotations

import argparse
from typing import Any

FLAG = "--plugin"
_HELP = "module with parts of your own (plugins), such as my_package.my_terms; repeatable"


class _Use(argparse.Action):
    """Makes the plugin known at once, and leaves nothing in the arguments."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from ltcore.plugins.loading import use

        use([values], given=True)


def add_plugin_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag to the parser of a command, or of all commands."""
    parser.add_argument(FLAG, action=_Use, default=argparse.SUPPRESS, metavar="MODULE", help=_HELP)


def without_plugins(words: list[str]) -> list[str]:
    """Returns an unfinished command line without its plugins, which are then known; those that are none are left out."""
    from ltcore.errors import PluginError
    from ltcore.plugins.loading import use

    rest, todo = list[str](), list(words)
    while todo:
        word = todo.pop(0)
        name = (
            word.removeprefix(f"{FLAG}=")
            if word.startswith(f"{FLAG}=")
            else todo[0]
            if word == FLAG and len(todo) > 1
            else ""
        )
        if not name or not todo:
            rest.append(word)
            continue
        if word == FLAG:
            todo.pop(0)
        try:
            use([name], given=True)
        except PluginError:
            continue  # it is said when the command runs
    return rest
