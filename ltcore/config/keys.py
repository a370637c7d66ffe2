"""Every configuration key with type, default and documentation, read from the source text of the dataclasses.

Why from the text: ``--show``, ``keys`` and ``methods`` must answer at once, but the dataclasses live beside the code
they configure, and importing that code imports torch (seconds). A generated table would be a second truth that goes
stale with every new method. The documentation of a field exists in the text alone anyway, so this module parses the few
files on which ``ltcore/config/schema.py`` rests, executes nothing, and needs some 50 ms. A test holds the result
against the imported dataclasses, field by field.

What it understands of a default is what a configuration needs: literals, arithmetic on them, named constants, and
instances of other configuration dataclasses.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
REQUIRED = "(required)"
"""Default of a field that has none."""

REGISTRY = "ltcore.objective.registry"
_GENERATED = {"BaseOptions": "BASES", "Terms": "TERMS", "Stage2Options": "STAGE2"}
"""Sections that the registry makes from its tables: one field per row, typed by the ``Config`` of the row's class."""

OPTIONS = ("objective.base_options.", "stage2.options.")
"""Beginnings of keys that say something about one row of a registry."""

FREE_TO_CHANGE = (
    "tracking.",
    "name",
    "data.loader",
    "data.uri",
    "data.images",
    "data.annotations",
    "data.cache_bytes",
    "data.prefetch_steps",
    "train.checkpoint_every_s",
    "train.threads",
)
"""Keys that do not change what is trained, so a run may be continued with other values of them."""
STAGE2_OWN = (
    "name",
    "seed",
    "tracking.",
    "stage2.",
    "data.uri",
    "data.images",
    "data.annotations",
    "data.loader",
    "data.cache_bytes",
    "data.max_bad_samples",
    "data.prefetch_steps",
    "train.precision",
    "train.threads",
    "train.eval_batch_size",
    "train.select",
)
"""Keys that belong to a run of stage 2 itself; all others are those of its stage 1. A dot at the end stands for a section."""


@dataclass(frozen=True)
class Allowed:
    """Which values a key takes, where one of the checks of ``ltcore.errors`` says it in the class's ``__post_init__``."""

    choices: tuple[Any, ...] = ()
    """All of them; (): they are not listed."""
    beginning: str = ""
    """Besides these, anything that begins so; '': nothing."""
    interval: str = ""
    """As in mathematics: '[0, 1)', '(0, inf)'; '': nothing is known."""


@dataclass(frozen=True)
class Leaf:
    """A key that holds a value."""

    type: str
    """As annotated: 'float', 'int | None', 'tuple[float, ...]'."""
    default: Any
    """Plain value, or ``REQUIRED``."""
    doc: str
    allowed: Allowed = Allowed()


@dataclass(frozen=True)
class Section:
    """A key that holds other keys."""

    doc: str
    fields: dict[str, Leaf | Section]
    optional: bool = False
    """True: null by default, and null switches it off."""


@dataclass(frozen=True)
class Method:
    """One registry row, without what it builds."""

    kind: str
    """'base', 'term', 'stage2', 'head', 'model' or 'data'."""
    name: str
    summary: str
    paper: str


@functools.cache
def run_keys() -> Section:
    """Returns the tree of all keys of a run."""
    module = _Module.read("ltcore.config.schema")
    return module.section(module.names["RunConfig"])


@functools.cache
def sweep_keys() -> Section:
    """Returns the keys of a sweep file."""
    module = _Module.read("ltcore.config.sweep")
    return module.section(module.names["SweepConfig"])


@functools.cache
def methods() -> tuple[Method, ...]:
    """Returns all rows of the registries: base losses, terms, methods of stage 2, classifiers, networks, sources of data."""
    own = (("base", REGISTRY, "BASES"), ("term", REGISTRY, "TERMS"), ("stage2", REGISTRY, "STAGE2"))
    networks = (("head", "ltcore.models.heads", "HEADS"), ("model", "ltcore.models.registry", "MODELS"))
    data = ("data", "ltcore.data.datasets.registry", "DATASETS")
    return tuple(
        Method(kind, name, summary, paper)
        for kind, module, table in (*own, *networks, data)
        for name, (_, summary, paper) in _Module.read(module).rows(table).items()
    )


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yields (dotted key, leaf) in the order of the source."""
    for name, field in section.fields.items():
        if isinstance(field, Section):
            yield from leaves(field, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def find(pattern: str | None) -> list[tuple[str, Leaf]]:
    """Returns the leaves of runs and sweeps whose key contains ``pattern``.

    A pattern with a ``*`` has to match the whole key. Without a pattern all leaves are returned.
    """
    table = [*leaves(run_keys()), *leaves(sweep_keys(), "sweep.")]
    if not pattern:
        return table
    glob = pattern if any(c in pattern for c in "*?") else f"*{pattern}*"
    return [(key, leaf) for key, leaf in table if fnmatch.fnmatchcase(key, glob)]


def effective(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the dotted keys of a run that have an effect.

    The options of losses and methods of stage 2 that are not chosen are left out: they have no effect, and another
    version may have other defaults for them.
    """
    chosen = {
        f"objective.base_options.{keys.get('objective.base')}.",
        f"stage2.options.{keys.get('stage2.method')}.",
    }
    return {k: v for k, v in keys.items() if not k.startswith(OPTIONS) or k.startswith(tuple(chosen))}


def comes_from_stage1(key: str) -> bool:
    """Tells whether a run of stage 2 takes this key from its run of stage 1."""
    return not any(key == own or (own.endswith(".") and key.startswith(own)) for own in STAGE2_OWN)


_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


class _Module:
    """The top-level names of one source file of this package."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.file = PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py")
        tree = ast.parse(self.file.read_text(encoding="utf-8"))
        self.names: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ltcore"):
                self.imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}
            elif isinstance(node, ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.names[node.target.id] = node.value

    @staticmethod
    @functools.cache
    def read(name: str) -> _Module:
        return _Module(name)

    def resolve(self, expr: ast.AST) -> tuple[_Module, ast.AST] | None:
        """Returns the place inside this package where a name or ``Class.Inner`` is defined, and its definition."""
        if isinstance(expr, ast.Name):
            if expr.id in self.names:
                return self, self.names[expr.id]
            if expr.id in self.imports:
                source, name = self.imports[expr.id]
                return _Module.read(source).resolve(ast.Name(name))
            if self.name == REGISTRY and expr.id in _GENERATED:
                return self, expr
        if isinstance(expr, ast.Attribute) and (outer := self.resolve(expr.value)):
            module, node = outer
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.ClassDef) and inner.name == expr.attr:
                    return module, inner
                if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == expr.attr:  # Config = LpaConfig
                    return module.resolve(inner.value)
        return None

    def rows(self, table: str) -> dict[str, tuple[ast.expr, str, str]]:
        """Returns name -> (what it builds, says, paper) of a registry table."""
        rows = self.names[table]
        assert isinstance(rows, ast.Dict)
        result = {}
        for key, row in zip(rows.keys, rows.values, strict=True):
            assert key is not None and isinstance(row, ast.Call)
            build, summary, paper = row.args
            result[self.constant(key)] = (build, self.constant(summary), self.constant(paper))
        return result

    def section(self, node: ast.AST, doc: str = "", optional: bool = False) -> Section:
        """Returns the fields of a configuration dataclass, inherited ones first."""
        if isinstance(node, ast.Name):
            return self._generated(node.id, doc)
        assert isinstance(node, ast.ClassDef)
        fields: dict[str, Leaf | Section] = {}
        for base in node.bases:
            if found := self.resolve(base):
                fields |= found[0].section(found[1]).fields
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                assert isinstance(field.target, ast.Name)
                text = _doc(after)
                inherited = fields.get(field.target.id)
                made = self._field(field, text or (inherited.doc if inherited else ""))
                if isinstance(made, Leaf) and isinstance(inherited, Leaf):
                    made = replace(made, allowed=inherited.allowed)
                fields[field.target.id] = made
        for name, allowed in self._allowed(node):
            if isinstance(leaf := fields.get(name), Leaf):
                fields[name] = replace(leaf, allowed=allowed)
        return Section(doc or (ast.get_docstring(node) or ""), fields, optional)

    def _generated(self, name: str, doc: str) -> Section:
        fields: dict[str, Leaf | Section] = {}
        for row, (build, summary, _) in self.rows(_GENERATED[name]).items():
            found = self.resolve(ast.Attribute(build, "Config"))
            assert found, f"{self.file}: {row!r} needs a class with a nested dataclass Config"
            fields[row] = found[0].section(found[1], summary, optional=name == "Terms")
        return Section(doc, fields)

    def _field(self, node: ast.AnnAssign, doc: str) -> Leaf | Section:
        kind: ast.AST = node.annotation
        optional = isinstance(kind, ast.BinOp) and ast.unparse(kind.right) == "None"
        found = self.resolve(kind.left if isinstance(kind, ast.BinOp) and optional else kind)
        if found and isinstance(found[1], ast.ClassDef | ast.Name):
            return found[0].section(found[1], doc, optional)
        return Leaf(ast.unparse(kind), REQUIRED if node.value is None else self.constant(node.value), doc)

    def _allowed(self, node: ast.ClassDef) -> Iterator[tuple[str, Allowed]]:
        """Yields what the checks in ``__post_init__`` say of fields, as far as it can be read without running them."""
        for call in (c for f in node.body if getattr(f, "name", "") == "__post_init__" for c in ast.walk(f)):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) not in (
                "one_of",
                "within",
                "at_least",
                "positive",
            ):
                continue
            try:
                allowed = self._said_by(ast.unparse(call.func), call.args)
            except (TypeError, ValueError):  # it depends on another field
                continue
            yield from ((k.arg, allowed) for k in call.keywords if k.arg and ast.unparse(k.value) == f"self.{k.arg}")

    def _said_by(self, check: str, args: list[ast.expr]) -> Allowed:
        if check == "positive":
            return Allowed(interval="(0, inf)")
        if check == "at_least":
            return Allowed(interval=f"[{self.constant(args[0])}, inf)")
        if check == "within":
            return Allowed(interval=self.constant(args[0]))
        expr: ast.AST = args[0]
        if isinstance(expr, ast.Call) and ast.unparse(expr.func) == "sorted":
            expr = expr.args[0]
        module, expr = (isinstance(expr, ast.Name) and self.resolve(expr)) or (self, expr)
        entries = expr.keys if isinstance(expr, ast.Dict) else getattr(expr, "elts", None)
        if entries is None:
            raise TypeError(f"{self.file}: {ast.unparse(expr)} is no list")
        choices = tuple(module.constant(entry) for entry in entries if entry is not None)
        return Allowed(choices, beginning=self.constant(args[1]) if len(args) > 1 else "")

    def constant(self, expr: ast.AST) -> Any:
        """Returns the value of a default."""
        if isinstance(expr, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in expr.values)
            return "".join(str(self.constant(part)) for part in parts)
        if isinstance(expr, ast.Tuple | ast.List):
            return tuple(self.constant(item) for item in expr.elts)
        if isinstance(expr, ast.BinOp) and type(expr.op) in _OPERATORS:
            return _OPERATORS[type(expr.op)](self.constant(expr.left), self.constant(expr.right))
        if isinstance(expr, ast.Name) and (found := self.resolve(expr)):
            return found[0].constant(found[1])
        if isinstance(expr, ast.Call) and ast.unparse(expr.func) == "field":
            factory = {k.arg: ast.unparse(k.value) for k in expr.keywords}.get("default_factory")
            if factory in ("dict", "list", "tuple"):
                return () if factory != "dict" else {}
        try:
            return ast.literal_eval(ast.unparse(expr))
        except ValueError:
            line = getattr(expr, "lineno", "?")
            raise TypeError(f"{self.file}:{line}: default {ast.unparse(expr)} must be a constant") from None


def _doc(node: ast.stmt | None) -> str:
    """Returns the text under a field, on one line."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
