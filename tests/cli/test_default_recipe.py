"""Without a recipe the size of the images chooses one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltcore.cli.default_recipe import recipe_for, with_recipe
from ltcore.cli.entry import say
from ltcore.cli.main import train
from ltcore.errors import ConfigError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LTCORE_DATA", raising=False)


def photos(folder: Path, side: int, per_class: int = 10) -> str:
    """A folder of two classes of noise."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for n in range(per_class):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name / f"{n}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("side", "keys", "recipe"),
    [
        (32, {}, "folder_small"),
        (64, {}, "folder_small"),
        (65, {}, "folder"),
        (300, {}, "folder"),
        (300, {"data.image_size": "64"}, "folder_small"),
        (32, {"data.image_size": "96"}, "folder"),
    ],
)
def test_up_to_64_px_are_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: int, keys: dict[str, str], recipe: str
) -> None:
    data = {"data.uri": photos(tmp_path / "photos", side), **keys}
    assert recipe_for(data, str(tmp_path / "runs"), say) == recipe
    said = capsys.readouterr().err
    assert f"so it is {recipe} (others: `ltcore recipes`)" in said
    chosen = with_recipe("compare_methods", data, str(tmp_path / "runs"), say)
    assert chosen == {**data, "sweep.recipe": recipe}


def test_the_main_sweep_has_its_own_recipe_for_its_own_data_alone(tmp_path: Path) -> None:
    data = {"data.uri": photos(tmp_path / "photos", 32)}
    assert with_recipe("tune_lpa", data, str(tmp_path / "runs"), say) == {**data, "sweep.recipe": "folder_small"}
    for overrides in ({"data.uri": "digits-glt"}, {**data, "sweep.recipe": "digits_glt_lpa_dro_ifl"}):
        assert with_recipe("tune_lpa", overrides, None, say) == overrides
    assert with_recipe("glt_ladder", data, None, say) == data, "it needs a recipe with all three terms"


def test_a_sweep_without_recipe_and_data_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"sweep compare_methods names no recipe: give your images \(--data FOLDER"):
        with_recipe("compare_methods", {}, None, say)
    assert with_recipe("compare_methods", {"sweep.recipe": "folder"}, None, say) == {"sweep.recipe": "folder"}
    assert with_recipe("tune_lpa", {}, None, say) == {}


def test_a_folder_of_sixty_small_photos_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photos(tmp_path / "photos", 16, per_class=30)
    words = [
        "--data",
        data,
        "--storage",
        str(tmp_path / "runs"),
        "--name",
        "x",
        "train.epochs=1",
        "tracking.wandb=false",
    ]
    train("doc", words)
    said = capsys.readouterr()
    assert "so it is folder_small" in said.err and "batches of 8 instead of 64" in said.err
    assert "Run directory" in said.out
