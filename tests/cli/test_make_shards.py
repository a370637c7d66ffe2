"""``make_shards.py``: where shards and pictures go, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from ltcore.cli.main import shards
from ltcore.errors import ConfigError
from tests.reporting import colored


def test_pictures_go_into_the_named_folder_or_one_after_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    colored.write(tmp_path / "data", attributes=False, counts={"train": ((2,), (1,))})
    monkeypatch.chdir(tmp_path)
    assert shards(None, ["pictures", "data", "here"]) == 0
    assert capsys.readouterr().out.splitlines() == ["here/classes.png", "here/samples-train.png"]
    assert shards(None, ["pictures", "data"]) == 0
    assert capsys.readouterr().out.splitlines() == ["toy-pictures/classes.png", "toy-pictures/samples-train.png"]
    assert (tmp_path / "here" / "classes.png").read_bytes() == (tmp_path / "toy-pictures" / "classes.png").read_bytes()


def test_what_does_not_go_with_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--list does not go with pictures"):
        shards(None, ["pictures", str(tmp_path), "--list", "train=a.txt"])
    with pytest.raises(SystemExit):
        shards(None, ["digits-glt", "out", "more"])
    assert "'more' is one argument too many" in capsys.readouterr().err
    for word, flags, named in (
        ("check", ["--imbalance-factor", "9"], "imbalance-factor"),
        ("info", ["--list", "train=a.txt"], "list"),
        ("check", ["--quality", "5"], "quality"),
        ("pictures", ["--shard-size", "5"], "shard-size"),
    ):
        with pytest.raises(SystemExit):
            shards(None, [word, "out", *flags])
        assert f"--{named} is about shards that are made, which {word} does not do" in capsys.readouterr().err
    colored.write(tmp_path / "data", counts={"train": ((1, 0, 0), (1, 0, 0))})
    with pytest.raises(ConfigError, match="imbalance_factor=3"):
        shards(None, ["pictures", str(tmp_path / "data"), str(tmp_path), "--imbalance-factor", "3"])


def test_shards_inside_the_folder_of_their_images_are_refused_but_of_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the folder's next reading takes them for a class."""
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for n in range(3):
            Image.new("RGB", (16, 16), (n, 0, 0)).save(tmp_path / name / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    for target in ("out", str(tmp_path / "ant" / "out")):
        with pytest.raises(ConfigError, match=r"out lies in \., whose folders are classes: give a place beside it"):
            shards(None, [".", target])
    assert shards(None, [".", ".made"]) == 0, "which is hidden"
    (tmp_path / "digits-glt").mkdir()
    assert shards(None, ["digits-glt", "digits-glt/out"]) == 0, "which is no folder, though there is one"
    shutil.rmtree(tmp_path / "digits-glt")
    (tmp_path / "train.txt").write_text("ant/0.png 0\nbee/0.png 1\n")
    assert shards(None, [".", "out", "--list", "train=train.txt"]) == 0
