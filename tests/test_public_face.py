"""What users import: every public name resolves, says what it is, and costs nothing until it is asked for."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import ltcore

PACKAGES = ["ltcore", *(f"ltcore.{found.name}" for found in pkgutil.iter_modules(ltcore.__path__) if found.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_resolve_and_have_docstrings(package):
    module = importlib.import_module(package)
    assert (module.__doc__ or "").strip()
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        assert isinstance(value, str | dict) or (value.__doc__ or "").strip(), name
        assert name in dir(module) or callable(module.__getattr__)
    with pytest.raises(AttributeError, match=r"nothing_of_this_name|has no attribute"):
        module.nothing_of_this_name  # noqa: B018


def test_packages_with_code_for_users_state_their_names():
    internal = {"ltcore.cli", "ltcore.benchmarks"}
    assert all(importlib.import_module(package).__all__ for package in set(PACKAGES) - internal)


def test_importing_every_package_imports_nothing_heavy():
    code = f"import importlib, sys; [importlib.import_module(p) for p in {PACKAGES}]; "
    code += "print([m for m in ('torch', 'numpy', 'ray', 'wandb', 'pyarrow', 'pydantic', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_of_the_readme_are_the_face():
    from ltcore import Batch, ModelOutput, load, make_objective

    assert Batch.__module__ == ModelOutput.__module__ == "ltcore.batch"
    assert (load.__module__, make_objective.__module__) == ("ltcore.training.predict", "ltcore.objective.objective")
