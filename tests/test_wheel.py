"""The wheel is all that a user gets: everything packaged is in it, and it works where the checkout is not."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from ltcore.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGED = sorted(f for f in (ROOT / "ltcore").rglob("*") if f.is_file() and f.suffix != ".pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with what uv has at hand, else with what it fetches."""
    folder = tmp_path_factory.mktemp("dist")
    build = ["uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)]
    if subprocess.run([*build, "--offline"], capture_output=True).returncode:
        subprocess.run(build, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment in which this package is the wheel and all others are those of this environment."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    install = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    # Folders that a .pth file names are searched last, and their own .pth files (an editable install is one) are not read.
    others = {*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "others.pth").write_text("\n".join(sorted(others)) + "\n", encoding="utf-8")
    return place / "bin"


def run(program: Path, *argv: str, cwd: Path) -> str:
    """Output of a program that knows nothing of the checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LTCORE_", "WANDB_"))}
    env = {**kept, "LTCORE_CACHE": str(cwd / "cache")}
    done = subprocess.run([program, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_what_is_packaged_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = f"ltcore-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == {str(f.relative_to(ROOT)) for f in PACKAGED}
    assert f"{about}licenses/ltcore/LICENSE" in names
    for kind in (".yaml", ".j2", "py.typed", "LICENSE"):
        assert any(f.name.endswith(kind) for f in PACKAGED), f"the comparison above saw no {kind}"


def test_the_console_script_describes_itself(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import ltcore; print(ltcore.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert run(installed / "ltcore", "--version", cwd=tmp_path) == f"ltcore {__version__}\n"
    listed = run(installed / "ltcore", "recipes", cwd=tmp_path)
    assert all(f"\n  {f.stem}\n" in listed for f in PACKAGED if f.parent.name in ("recipes", "sweeps"))


@pytest.mark.slow
def test_it_trains_on_the_embedded_data(installed: Path, tmp_path: Path) -> None:
    terms = [f"objective.terms.{name}=null" for name in ("lpa", "dro", "ifl")]  # which take half of the time
    words = [
        "digits_glt_lpa_dro_ifl",
        "train.epochs=1",
        *terms,
        "tracking.wandb=false",
        "tracking.tensorboard=false",
        "--engine",
        "inline",
    ]
    out = run(installed / "ltcore", "train", *words, "--name", "x", "--storage", "runs", cwd=tmp_path)
    assert "x: test" in out and "balanced accuracy" in out
    record = json.loads((tmp_path / "runs" / "x" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished" and set(record["test"]) == {"test_cbl", "test_gbl"}
