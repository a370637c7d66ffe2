"""What the package says of itself: methods, recipes, keys. Needs neither torch nor Ray."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from ltcore.config import keys, overrides, recipes
from ltcore.errors import ConfigError, nearest
from ltcore.models import timm_names
from ltcore.text import printable


def print_methods() -> None:
    titles = {
        "base": "Base losses (objective.base)",
        "term": "Terms (objective.terms.<name>)",
        "stage2": "Stage 2, on the frozen features of a run (stage2.method)",
        "head": "Classifiers (model.head)",
        "model": "Networks (model.name)",
        "data": "Data (data.uri)",
        "augmentation": "Augmentations (augment.view1, augment.view2)",
        "sampler": "Samplings (train.sampling)",
        "callback": "Callbacks of plugins (callbacks.<name>)",
        "metric": "Metrics of plugins (train.select=val/<name>)",
    }
    for kind, title in titles.items():
        rows = [row for row in keys.methods() if row.kind == kind]
        if rows:
            print(title)
        for row in rows:
            print(f"  {row.name:<20}{row.summary}")
            if row.paper != "-":
                print(f"{'':<22}{row.paper}")
        if kind == "model":
            _print_more_networks()


def _print_more_networks() -> None:
    """Prints what is said of networks beside the registry: those of timm, and what of a network can be trained."""
    print(
        f"  {timm_names.PREFIX + 'NAME':<20}any network of timm, such as {timm_names.PREFIX}vit_base_patch16_clip_224"
    )
    tune = dict(keys.find("model.tune"))["model.tune"].allowed
    ways = [*map(str, tune.choices), f"{tune.beginning}K"]
    print(f"What of a network is trained (model.tune)\n  {', '.join(ways)} (ltcore keys model.tune)")


def print_recipes() -> None:
    for kind in ("recipe", "sweep"):
        print(f"{kind.capitalize()}s")
        for name, file in recipes.packaged(kind).items():
            print(f"  {name}")
            for line in recipes.header(file)[1:]:
                print(f"      {line}")


def print_keys(pattern: str | None) -> None:
    found = keys.find(pattern)
    if not found:
        near = nearest(str(pattern), (key for key, _ in keys.find(None)))
        raise ConfigError(f"keys {pattern}: no key matches.{near} Without a pattern all are listed.")
    for key, leaf in found:
        default = leaf.default if leaf.default is keys.REQUIRED else overrides.as_text(leaf.default)
        print(f"{key} = {default}    ({leaf.type})")
        print(textwrap.indent(textwrap.fill(leaf.doc, 110), "    "))


def check_parts(module: str) -> int:
    """Prints what every contract of every part of a plugin came to; returns 1 where one is broken."""
    from ltcore.contracts.check import check_plugin  # imports torch

    broken = total = 0
    part = ""
    for outcome in check_plugin(module):
        if outcome.part != part:
            print(part := outcome.part)
        print(f"  {'failed' if outcome.problem else 'ok':<8}{outcome.contract}", flush=True)
        if outcome.problem:
            print(textwrap.indent(textwrap.fill(printable(outcome.problem), 110), " " * 10))
        broken, total = broken + bool(outcome.problem), total + 1
    kept = f"all {total} contracts are kept." if total else "nothing was checked: no part of it has a contract."
    print(f"{broken} of {total} contracts are broken." if broken else kept)
    return int(broken > 0)


def check() -> int:
    """Runs ruff, mypy and pytest, all three also after a failure."""
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
