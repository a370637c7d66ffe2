"""The direction of imports, read from the source, and what importing a layer pulls in.

pipelines | api -> cli -> benchmarks -> tuning -> runtime -> training | reporting -> config
          -> data | models | objective | evaluation | tracking -> base modules
"""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "ltcore"
BASE = (
    "batch",
    "stats",
    "shots",
    "rng",
    "hashing",
    "dist",
    "errors",
    "text",
    "storage",
    "retry",
    "file_lock",
    "owned_folder",
    "lease",
    "stores",
    "steady_file",
    "uris",
    "fsspec_stores",
    "version",
    "limits",
    "lazy",
    "framing",
    "plugins",
    "callbacks",
)
LEVEL = {
    **dict.fromkeys(BASE, 0),
    **dict.fromkeys(("data", "models", "objective", "evaluation", "tracking"), 1),
    "config": 2,
    **dict.fromkeys(("training", "reporting"), 3),
    "runtime": 4,
    "contracts": 4,
    "tuning": 5,
    "benchmarks": 6,
    "cli": 7,
    "api": 8,
}
FILES = sorted(PACKAGE.rglob("*.py"))
LIGHT = set(sys.stdlib_module_names) | {"torch", "numpy", "ltcore"}


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imports(node: ast.AST, *, inside_functions: bool = True) -> frozenset[str]:
    """Dotted names of imported modules; ``from a import b`` counts as a.b."""
    found = set()
    todo = list(ast.iter_child_nodes(node))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return frozenset(found)


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def test_every_file_belongs_to_a_layer():
    assert {layer_of(f) for f in FILES} - {"__init__", "__main__"} == set(LEVEL)


@pytest.mark.parametrize("file", [f for f in FILES if layer_of(f) in LEVEL], ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    own = layer_of(file)
    for name in imports(tree(file)):
        top, _, rest = name.partition(".")
        if top != "ltcore":
            continue
        assert rest.split(".")[0] in LEVEL, f"{own} imports from the public face: {name}"
        other = rest.split(".")[0]
        assert other == own or LEVEL[other] < LEVEL[own] or {own, other} <= set(BASE), f"{own} imports {other}: {name}"


def test_importing_the_package_alone_imports_no_torch():
    code = "import sys, ltcore; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("library", "layers"),
    [("ray", {"runtime", "tuning", "benchmarks"}), ("pydantic", {"config"}), ("wandb", {"tracking"})],
)
def test_few_layers_alone_import(library, layers):
    users = {layer_of(f) for f in FILES if library in {name.split(".")[0] for name in imports(tree(f))}}
    assert users <= layers


def test_every_file_of_runtime_is_about_ray():
    strangers = [f.name for f in (PACKAGE / "runtime").rglob("*.py") if "ray" not in f.read_text().lower()]
    assert set(strangers) <= {"__init__.py"}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other."""
    reach = {}
    for start in arrows:
        new, found = set(arrows[start]), set()
        while new:
            found |= new
            new = set().union(*(arrows.get(name, set()) for name in new)) - found
        reach[start] = found
    groups = {tuple(sorted({b for b in reach[a] if a in reach.get(b, ())})) for a in arrows if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


def test_imports_go_in_no_circle():
    """Also inside folders, inside functions, and for types alone."""
    modules = {module_of(file): file for file in FILES}
    arrows = {}
    for name, file in modules.items():
        found = imports(tree(file))
        arrows[name] = {m if m in modules else m.rpartition(".")[0] for m in found} & modules.keys() - {name}
    del arrows["ltcore"]  # the face looks down on all of them, and none up to it (above)
    assert circles(arrows) == []


@pytest.mark.parametrize("layer", ["objective", "models", "evaluation"])
def test_mathematics_needs_torch_and_numpy_alone(layer):
    for file in (f for f in FILES if layer_of(f) == layer):
        names = {name.split(".")[0] for name in imports(tree(file), inside_functions=False)}
        assert names <= LIGHT, f"{file.name} imports {names - LIGHT} at module level"


def test_tests_import_nothing_from_tests():
    """What several of them use lies in a module of its own."""
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(
            r"\btests\.[^\n]*\btest_|\btests(\.\w+)*\s+import\s+(\([^)]*|[^\n]*)\btest_", text
        ):  # parsing takes long
            names = imports(tree(file))
            assert not [name for name in names if name.startswith("tests.") and ".test_" in name], file


def test_pipelines_import_nothing_but_ltcore():
    allowed = set(sys.stdlib_module_names) | {"ltcore"}
    for file in (ROOT / "pipelines").glob("*.py"):
        assert {name.split(".")[0] for name in imports(tree(file))} <= allowed, file.name


def test_importing_pulls_in_neither_ray_nor_wandb():
    modules = (
        "ltcore.objective.objective",
        "ltcore.models.net",
        "ltcore.data.loading.loader",
        "ltcore.training.trainer",
    )
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    print(module, [m for m in ("ray", "wandb", "matplotlib", "sklearn") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{module} []" for module in modules]
