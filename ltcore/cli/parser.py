"""The parser of a command: argparse's, which can also be asked for itself instead of reading anything."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

DESCRIBE: Sequence[str] = ("--describe",)
"""Given in place of a command line, by identity: the parser is raised as ``Described``."""


class Described(Exception):  # noqa: N818  (an answer, not an error)
    """Carries a parser that was asked for."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """Reads a command line, or describes itself."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads the arguments, through which all ways of reading lead."""
        if args is DESCRIBE:
            raise Described(self)
        return super().parse_known_args(args, namespace)
