"""Reading of configuration dataclasses from their source text: fields, types, defaults, documentation, allowed values.

Nothing is executed. What is understood of a default is what a configuration needs: literals, arithmetic on them, named
constants, and instances of other configuration dataclasses.
"""

from __future__ import annotations

import ast
import functools
import itertools
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltcore.errors import PluginError
from ltcore.evaluation.catalog import taken
from ltcore.plugins import source
from ltcore.plugins.loading import known_parts

PACKAGE = Path(__file__).parents[1]
REQUIRED = "(required)"
"""Default of a field that has none."""

REGISTRY = "ltcore.objective.registry"
_GENERATED = {
    "BaseOptions": (REGISTRY, REGISTRY, "BASES"),
    "Terms": (REGISTRY, REGISTRY, "TERMS"),
    "Stage2Options": (REGISTRY, REGISTRY, "STAGE2"),
    "Callbacks": ("ltcore.callbacks", "ltcore.callbacks", "CALLBACKS"),
    "ModelOptions": ("ltcore.models.registry", "ltcore.models.registry", "MODELS"),
    "AugmentOptions": ("ltcore.data.augment.config", "ltcore.data.augment.policies", "AUGMENTS"),
    "SamplingOptions": ("ltcore.data.loading.class_sampling", "ltcore.data.loading.class_sampling", "SAMPLINGS"),
    "MetricOptions": ("ltcore.evaluation.plugged", "ltcore.evaluation.plugged", "PLUGGED"),
}
"""Sections that are made from the tables of registries, with the modules of both: one field per row, typed by the ``Config`` of
the row's class."""
_SPARSE = ("ModelOptions", "AugmentOptions", "SamplingOptions", "MetricOptions")
"""Those of them in whose tables a row need not have a ``Config``."""
_OPTIONAL = ("Terms", "Callbacks")
"""Those of them whose fields are null by default."""
_KINDS = {
    "BASES": "loss",
    "TERMS": "term",
    "STAGE2": "stage2",
    "CALLBACKS": "callback",
    "MODELS": "model",
    "DATASETS": "dataset",
    "AUGMENTS": "augmentation",
    "SAMPLINGS": "sampler",
    "PLUGGED": "metric",
}
"""Table of a registry -> kind of the plugins' parts that belong to it."""


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


def leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yields (dotted key, leaf) in the order of the source."""
    for name, field in section.fields.items():
        if isinstance(field, Section):
            yield from leaves(field, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


_CHECKS = ("one_of", "within", "at_least", "positive")


class Module:
    """The top-level names of one source file of this package, or of a plugin's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.file = _file(name)
        tree = ast.parse(self.file.read_text(encoding="utf-8"))
        self.names: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        own = ("ltcore", name.partition(".")[0])
        ifs = (n.body for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
        lazy = (n for n in itertools.chain(*ifs) if isinstance(n, ast.ImportFrom))  # public names of a package
        for node in (*tree.body, *lazy):
            if isinstance(node, ast.ImportFrom):
                module = source.absolute(name, node)
                if module.partition(".")[0] in own:
                    self.imports |= {a.asname or a.name: (module, a.name) for a in node.names}
            elif isinstance(node, ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.names[node.target.id] = node.value

    @staticmethod
    @functools.cache
    def read(name: str) -> Module:
        return Module(name)

    def resolve(self, expr: ast.AST) -> tuple[Module, ast.AST] | None:
        """Returns the place inside this package where a name or ``Class.Inner`` is defined, and its definition."""
        if isinstance(expr, ast.Name):
            if expr.id in self.names:
                return self, self.names[expr.id]
            if expr.id in self.imports:
                module, name = self.imports[expr.id]
                return Module.read(module).resolve(ast.Name(name))
            if _GENERATED.get(expr.id, ("",))[0] == self.name:
                return self, expr
        if isinstance(expr, ast.Attribute):
            if isinstance(expr.value, ast.Name) and (submodule := self._submodule(expr.value.id)):
                return Module.read(submodule).resolve(ast.Name(expr.attr))
            if outer := self.resolve(expr.value):
                return outer[0].inside(outer[1], expr.attr)
        return None

    def _submodule(self, name: str) -> str:
        """Returns the module of a plugin that an import binds to a name; '' where it is something else."""
        dotted = ".".join(self.imports.get(name, ()))
        return dotted if dotted and not dotted.startswith("ltcore.") and source.file_of(dotted) else ""

    def inside(self, node: ast.AST, name: str) -> tuple[Module, ast.AST] | None:
        """Returns the place of a class inside the class ``node`` of this module, or inside one that it inherits from."""
        if not isinstance(node, ast.ClassDef):
            return None
        for inner in node.body:
            if isinstance(inner, ast.ClassDef) and inner.name == name:
                return self, inner
            if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == name:  # Config = LpaConfig
                return self.resolve(inner.value)
        parents = (self.resolve(base) for base in node.bases)
        return next((found for p in parents if p and (found := p[0].inside(p[1], name))), None)

    def rows(self, table: str) -> dict[str, tuple[Module, ast.expr, str, str]]:
        """Returns name -> (module, what it builds, says, paper) of a registry table, those of plugins last.

        Raises PluginError where a plugin has a name of the table.
        """
        rows = self.names[table]
        assert isinstance(rows, ast.Dict)
        result: dict[str, tuple[Module, ast.expr, str, str]] = {}
        for key, row in zip(rows.keys, rows.values, strict=True):
            assert key is not None and isinstance(row, ast.Call)
            build, summary, *paper = row.args
            said = [self.constant(text) for text in (summary, *paper)]
            result[self.constant(key)] = (self, build, said[0], said[1] if paper else "-")
        for (kind, name), (plugin, part) in known_parts().items():
            if kind == _KINDS.get(table):
                if name in result or (kind == "metric" and taken(name)):
                    raise PluginError(
                        f"plugin {plugin}: the {kind} {name!r} exists already in ltcore: give it another name.", plugin
                    )
                result[name] = (Module.read(part.module), ast.Name(part.symbol), part.summary, part.paper)
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
        _, home, table = _GENERATED[name]
        for row, (module, build, summary, _) in Module.read(home).rows(table).items():
            found = module.resolve(ast.Attribute(build, "Config"))
            problem = f"{module.file}: {row!r} needs a class with a nested dataclass Config"
            if found is None and name in _SPARSE:
                continue
            if module is self:
                assert found, problem
                fields[row] = found[0].section(found[1], summary, optional=name in _OPTIONAL)
            elif found is None:
                said = f"plugin {module.name}: {problem}, which can be found without importing it."
                raise PluginError(said, module.name)
            else:
                fields[row] = _of_plugin(module.name, found, summary, optional=name in _OPTIONAL)
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
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in _CHECKS:
                continue
            try:
                allowed = self._said_by(call.func.id, call.args)
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
        table = next((name for name, node in module.names.items() if node is expr), "")
        more = (name for kind, name in known_parts() if kind == _KINDS.get(table))
        choices = (*(module.constant(entry) for entry in entries if entry is not None), *more)
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
            return ast.literal_eval(expr)
        except ValueError:
            line = getattr(expr, "lineno", "?")
            raise TypeError(f"{self.file}:{line}: default {ast.unparse(expr)} must be a constant") from None


def _file(name: str) -> Path:
    """Returns the source file of a module of this package, or of a plugin's."""
    if name.partition(".")[0] == "ltcore":
        path = PACKAGE.parent.joinpath(*name.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    file = source.file_of(name)
    assert file is not None, name  # its parts were read from it
    return file


def _of_plugin(plugin: str, found: tuple[Module, ast.AST], doc: str, *, optional: bool) -> Section:
    """Returns the section of a plugin's part. Raises PluginError for a ``Config`` that keys cannot be read from."""
    try:
        section = found[0].section(found[1], doc, optional)
    except (TypeError, AssertionError) as error:
        raise PluginError(f"plugin {plugin}: {error}.", plugin) from None
    for key, leaf in leaves(section):
        if not _WRITTEN_FLAT.fullmatch(leaf.type):
            raise PluginError(
                f"plugin {plugin}: {found[0].file} annotates {key} with {leaf.type}, expected int, float, bool, str, a tuple of "
                "one of them such as tuple[int, ...], each also | None, or a dataclass of them.",
                plugin,
            )
        if leaf.default is REQUIRED:
            raise PluginError(f"plugin {plugin}: {found[0].file} gives {key} no default.", plugin)
    return section


_SCALAR = r"(?:int|float|bool|str)"
_MEMBER = rf"(?:None|{_SCALAR}|tuple\[{_SCALAR}(?:, {_SCALAR})*(?:, \.\.\.)?\])"
_WRITTEN_FLAT = re.compile(rf"{_MEMBER}(?: \| {_MEMBER})*")
"""Annotations of what a stored configuration writes as one value of one key, and reads back: of anything else the run could
be trained, but no checkpoint of it be loaded."""


def _doc(node: ast.stmt | None) -> str:
    """Returns the text under a field, on one line."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
