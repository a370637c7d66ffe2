"""What a person is told about the data before anything is trained, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli.parsers import read_train, read_tune
from ltcore.cli.prepare import prepare_run
from ltcore.cli.train import train
from ltcore.cli.tune import tune
from ltcore.errors import ConfigError
from ltcore.runtime import cluster
from ltcore.training.rehearsal import Speed
from tests.data.small import tiny_png
from tests.training.runs import tiny_run

AS_THEY_ARE = (
    "Images are used as they are: data.imbalance_factor=100 of the recipe is for cifar100. Give it to select.\n"
)


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a dry run, which take seconds and are not about the data."""
    speed = Speed(device="cpu", steps=1, images_per_step=2, train_per_s=1.0, eval_per_s=1.0, read_per_s=1.0)
    monkeypatch.setattr("ltcore.training.rehearsal.measure", lambda *_: speed)


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Two classes of 40 images, and one of 5."""
    for name, count in (("ant", 40), ("bee", 40), ("cat", 5)):
        add_class(tmp_path / "photos", name, count)
    return str(tmp_path / "photos")


def add_class(folder: Path, name: str, count: int) -> None:
    (folder / name).mkdir(parents=True)
    for n in range(count):
        (folder / name / f"{n}.png").write_bytes(tiny_png(n))


def dry_run(tmp_path: Path, *words: str) -> None:
    args = [
        "cifar100_lt_ce",
        "--dry-run",
        "--storage",
        str(tmp_path / "runs"),
        "train.batch_size=2",
        "data.image_size=8",
        *words,
    ]
    assert train(read_train("doc", args)) is None


def test_photos_are_used_as_they_are_and_it_is_said(
    tmp_path: Path, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_class(Path(photos), "emu", 1)
    dry_run(tmp_path, "--data", photos)
    said = capsys.readouterr()
    assert said.err.startswith(AS_THEY_ARE)
    assert (
        "photos: test and val have no image of 1 of 4 classes (emu): their accuracy cannot be measured there.\n"
        in said.err
    )
    assert "photos: train 56, val 13, test 17 images; val and test are carved out of training" in said.err
    assert "training images are used" not in said.err
    assert "photos: 56 training images, 4 classes" in said.out


def test_a_typed_factor_is_said_with_the_number_of_images_that_it_leaves(
    tmp_path: Path, photos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # made, and found again
        dry_run(tmp_path, "--data", photos, "data.imbalance_factor=4")
        said = capsys.readouterr()
        assert "used as they are" not in said.err
        used = "photos-if4-keyed: 32 of 68 training images are used"
        assert f"{used} (data.imbalance_factor=4; in whole images that is 19 to 4).\n" in said.err


def test_a_factor_that_would_change_nothing_on_shards_is_refused(tmp_path: Path, tiny_shards: str) -> None:
    shards = str(shutil.copytree(tiny_shards, tmp_path / "shards"))
    dry_run(tmp_path, "--data", shards)
    with pytest.raises(ConfigError, match=r"data\.imbalance_factor=100 has no effect on .*shards, finished shards"):
        dry_run(tmp_path, "--data", shards, "data.imbalance_factor=100")


def test_a_sweep_says_what_it_does_not_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photos: str
) -> None:
    def no_ray(**options: Any) -> None:
        raise ConfigError("no Ray in this test")

    monkeypatch.setattr(cluster, "connect", no_ray)
    args = ["cifar100_lt_lpa_dro_ifl", "--data", photos, "--storage", str(tmp_path / "runs")]
    with pytest.raises(ConfigError, match="no Ray in this test"):
        tune(read_tune("doc", args))
    out = capsys.readouterr()
    assert AS_THEY_ARE.split(":")[0] in out.out + out.err


def test_a_sweep_is_told_where_it_says_the_rest(tmp_path: Path, photos: str) -> None:
    said: list[str] = []
    add_class(Path(photos), "emu", 1)
    prepare_run(tiny_run(data__uri=photos), str(tmp_path), said.append)
    assert (
        said[-1]
        == "photos: test and val have no image of 1 of 4 classes (emu): their accuracy cannot be measured there."
    )


def test_stage_2_repeats_the_factor_of_its_stage_1_and_is_not_refused_for_it(tmp_path: Path, tiny_shards: str) -> None:
    cfg = tiny_run(data__uri=tiny_shards, data__imbalance_factor=100)
    with pytest.raises(ConfigError, match="has no effect on"):
        prepare_run(cfg, str(tmp_path), print)
    stage2 = {"stage2.method": "crt", "stage2.from_run": "/run"}
    assert prepare_run(cfg.replace(stage2), str(tmp_path), print)[0] == tiny_shards
