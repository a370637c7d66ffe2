"""``python -m ltcore``: the package describes itself.

python -m ltcore methods            losses, terms, stage 2 and networks, with papers
python -m ltcore composition        what goes with what, and why not
python -m ltcore recipes            packaged recipes and sweeps
python -m ltcore keys [PATTERN]     configuration keys: type, default, meaning
python -m ltcore show RECIPE [k=v]  a recipe with all defaults, resolved
python -m ltcore doctor             is every node fit to run? versions, GPUs, disk, storage, data, authentication
python -m ltcore check              linter, type checker and tests of a source checkout
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap

from ltcore.cli.args import run_main, split_words
from ltcore.config import keys
from ltcore.config import overrides as tree
from ltcore.errors import ConfigError
from ltcore.text import printable_lines


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m ltcore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("methods", help="losses, terms, stage 2 and networks")
    commands.add_parser("composition", help="what goes with what, and why not")
    commands.add_parser("recipes", help="packaged recipes and sweeps")
    find = commands.add_parser("keys", help="configuration keys")
    find.add_argument("pattern", nargs="?", help="part of a key, or a pattern with *")
    show = commands.add_parser("show", help="a resolved recipe")
    show.add_argument("words", nargs="+", metavar="RECIPE key=value")
    doctor = commands.add_parser("doctor", help="is every node fit to run?")
    doctor.add_argument("--storage", metavar="URI", help="where results go (default: LTCORE_STORAGE)")
    doctor.add_argument("--data", metavar="URI", help="shards that must be reachable (default: LTCORE_DATA)")
    doctor.add_argument("--max-gpus", type=float, metavar="N", help="as for a sweep")
    commands.add_parser("check", help="linter, type checker, tests")
    args = parser.parse_args()
    if args.command == "show":
        recipe, overrides = split_words(show, args.words)
        if recipe is None:
            show.error("which recipe? (python -m ltcore recipes)")
        from ltcore.config.show import show_run  # imports pydantic, which the other commands do without

        print(printable_lines(show_run(recipe, overrides)))
    elif args.command == "keys":
        print_keys(args.pattern)
    elif args.command == "composition":
        from ltcore.config.compatibility import markdown  # imports torch, to build the configurations

        print(markdown())
    elif args.command == "doctor":
        from ltcore.cli.doctor import examination

        return examination(args.storage, args.data, args.max_gpus)
    elif args.command == "check":
        return check()
    else:
        {"methods": print_methods, "recipes": print_recipes}[args.command]()
    return 0


def print_methods() -> None:
    titles = {
        "base": "Base losses (objective.base)",
        "term": "Terms (objective.terms.<name>)",
        "stage2": "Stage 2, on the frozen features of a run (stage2.method)",
        "model": "Networks (model.name)",
    }
    for kind, title in titles.items():
        print(title)
        for row in (row for row in keys.methods() if row.kind == kind):
            print(f"  {row.name:<20}{row.says}")
            if row.paper != "-":
                print(f"{'':<22}{row.paper}")


def print_recipes() -> None:
    for kind in ("recipe", "sweep"):
        print(f"{kind.capitalize()}s")
        for name, file in tree.packaged(kind).items():
            print(f"  {name}")
            for line in tree.header(file)[1:]:
                print(f"      {line}")


def print_keys(pattern: str | None) -> None:
    found = keys.find(pattern)
    if not found:
        raise ConfigError(f"keys {pattern}: no key matches. Without a pattern all are listed.")
    for key, leaf in found:
        default = leaf.default if leaf.default is keys.REQUIRED else tree.as_text(leaf.default)
        print(f"{key} = {default}    ({leaf.type})")
        print(textwrap.indent(textwrap.fill(leaf.doc, 110), "    "))


def check() -> int:
    """ruff, mypy and pytest, all three also after a failure."""
    root = keys.PACKAGE.parent
    if not (root / "pyproject.toml").is_file() or not (root / "tests").is_dir():
        raise ConfigError(
            f"check needs a source checkout; ltcore is installed in {root}, without pyproject.toml and tests."
        )
    codes = []
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest", "-q"]):
        print(f"$ {' '.join(command)}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", *command], cwd=root, check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    run_main(main)
