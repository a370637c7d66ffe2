"""The script as a person runs it: make, check, info, and errors in one sentence."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT


@pytest.fixture
def run(command):
    """Runs the script."""
    return lambda *words: command("shards", *words)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 2)):
        for name in ("ant", "bee"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                out = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
                (folder / f"{i}.png").write_bytes(out.getvalue())
    return tmp_path / "pets"


def test_make_check_and_info(run, images, tmp_path):
    done = run(images, tmp_path / "out", "--imbalance-factor", "4", "--val-per-class", "2", "--shard-size", "5")
    assert done.code == 0, done.err
    assert "pets-if4-keyed: 21 of 21 images" in done.err and "made in" in done.err
    assert "12..3, imbalance 4" in done.out and "val_short: {'ant': 0}" in done.out
    info = run("info", tmp_path / "out")
    assert info.code == 0 and info.out == done.out
    sound = run("check", tmp_path / "out")
    assert sound.code == 0 and not sound.out and "0 problems found" in sound.err
    (tmp_path / "out" / "train-00001.tar").unlink()
    broken = run("check", tmp_path / "out")
    assert broken.code == 1 and "train-00001.tar" in broken.out


def test_list_files(run, images, tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"train/bee/{i}.png 0\ntrain/ant/{i}.png 1\n" for i in range(4)))
    (tmp_path / "test.txt").write_text("test/bee/0.png 0\ntest/ant/0.png 1\n")
    lists = [f"--list={split}={tmp_path / split}.txt" for split in ("train", "test")]
    done = run(images, tmp_path / "out", *lists, "--val-per-class", "0")
    assert done.code == 0, done.err
    assert "2: bee, ant" in done.out


def test_a_table_with_columns_of_ones_own(run, images, tmp_path):
    rows = [f"train/{name}/{i}.png,{name},{('train', 'test')[i % 2]}" for name in ("ant", "bee") for i in range(6)]
    (images / "pets.csv").write_text("\n".join(["photo,species,fold", *rows]))
    table = images / "pets.csv"
    columns = ("--image-column", "photo", "--label-column", "species", "--split-column", "fold")
    done = run(table, tmp_path / "out", *columns, "--val-per-class", "0")
    assert done.code == 0, done.err
    assert "2: ant, bee" in done.out and "test: as given" in done.out
    done = run(table, tmp_path / "out", *columns[:2])
    assert done.code == 2 and "It has 'photo', 'species', 'fold'. Choose one: data.label_column=NAME" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere", "OUT"), 1, "error: data.uri='nowhere': there is nothing. Accepted: shards"),
        (
            ("IMAGES", "OUT", "--imbalance-factor", "0.5"),
            2,
            "error: data.imbalance_factor must be a finite number >= 1",
        ),
        (("IMAGES", "OUT", "--subset", "other"), 2, "error: data.subset must be one of auto, keyed, legacy"),
        (("IMAGES", "OUT", "--list", "train.txt"), 2, "expected SPLIT=FILE, got train.txt"),
        (("info", "nowhere"), 1, "nowhere/manifest.json does not exist"),
    ],
)
def test_errors_are_one_sentence(run, images, tmp_path, arguments, code, message):
    places = {"IMAGES": images, "OUT": tmp_path / "out"}
    done = run(*(places.get(word, word) for word in arguments))
    assert done.code == code and message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_traceback_is_shown_on_request(run, tmp_path):
    assert "Traceback" in run("nowhere", tmp_path / "out", "--debug").err


def test_help_needs_no_torch():
    code = "import runpy, sys; sys.argv = ['make_shards.py', '--help']\n"
    code += "try: runpy.run_path('pipelines/make_shards.py', run_name='__main__')\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--imbalance-factor" in done.stdout and done.stdout.strip().endswith("False")
