"""Images that are encoded anew on their way into shards, in ``shards`` and in ``shards glt`` alike."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltcore.cli.glt_parser import read_shards_glt
from ltcore.cli.shards_parser import read_shards
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make
from ltcore.data.datasets.workspace import here
from ltcore.data.glt.workspace import build
from ltcore.data.images.decode import decode_image
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.source import Sample
from ltcore.data.shards.validate import check_dataset
from ltcore.errors import BadImageError, ConfigError
from tests.data.glt_bar import no_bar
from tests.data.nested import file_hashes, nested_folder, nested_pool


def encoded(width: int, height: int, kind: str = "PNG", **options: Any) -> bytes:
    rng, out = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(out, kind, **options)
    return out.getvalue()


def anew(image: bytes, **options: Any) -> Image.Image:
    sample = Reencode(**options)(Sample("k", image, "", 3, 1), "x")
    assert (sample.key, sample.label, sample.attribute, sample.ext) == ("k", 3, 1, options["format"])
    assert sample == Reencode(**options)(Sample("k", image, "", 3, 1), "x"), "the same bytes"
    return Image.open(io.BytesIO(sample.image))


def test_png_keeps_every_pixel_and_jpg_and_webp_are_what_they_are_called() -> None:
    image = encoded(9, 7)
    assert (np.asarray(anew(image, format="png")).transpose(2, 0, 1) == decode_image(image, "x")).all()
    for name, kind in (("jpg", "JPEG"), ("webp", "WEBP")):
        found = anew(image, format=name)
        assert (found.format, found.mode, found.size) == (kind, "RGB", (9, 7))


def test_the_shorter_side_is_scaled_down_and_never_up() -> None:
    assert anew(encoded(90, 60), format="png", short_side=20).size == (30, 20)
    assert anew(encoded(41, 90), format="jpg", short_side=20).size == (20, 44)
    assert anew(encoded(15, 40), format="webp", short_side=20).size == (15, 40)


def test_a_turned_photograph_is_written_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    found = anew(encoded(8, 4, "JPEG", exif=exif), format="png")
    assert found.size == (4, 8) and not found.getexif()


def test_less_quality_takes_less_room() -> None:
    image = encoded(64, 64)
    sizes = [len(Reencode(format="jpg", quality=q)(Sample("k", image, "png", 0), "x").image) for q in (30, None, 95)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_a_broken_image_is_named() -> None:
    with pytest.raises(BadImageError, match=r"^here: the image cannot be decoded"):
        Reencode(format="png")(Sample("k", b"no image", "png", 0), "here")


def test_shards_and_benchmarks_are_written_by_the_same_rules(tmp_path: Path) -> None:
    root, how = nested_folder(tmp_path), Reencode(format="webp", quality=50, short_side=2)
    pool, choices = nested_pool(root, reencode=how)
    _, benchmark = build(pool, choices, str(tmp_path / "glt"), here, bar=no_bar)
    plain = make(
        DataConfig(uri=str(root), classes_from="depth", val_per_class=1), str(tmp_path / "plain"), reencode=how
    )
    said = {"format": "webp", "quality": 50, "short_side": 2}
    for uri, manifest in ((tmp_path / "glt", benchmark), (tmp_path / "plain", plain)):
        assert manifest.provenance["reencoded"] == said and manifest.image_size == 2
        assert check_dataset(str(uri)) == []
        store = ShardStore(str(uri))
        images = [Image.open(io.BytesIO(image)) for image in store.read_rows("train", np.arange(3))]
        assert {(image.format, min(image.size)) for image in images} == {("WEBP", 2)}
    again, _ = nested_pool(root, reencode=how)
    build(again, choices, str(tmp_path / "again"), here, bar=no_bar)
    assert file_hashes(tmp_path / "again") == file_hashes(tmp_path / "glt")


def test_the_command_line_says_what_does_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--reencode", "jpg", "--quality", "80", "--short-side", "256"]
    how = Reencode(format="jpg", quality=80, short_side=256)
    assert read_shards("", ["photos", "out", *words]).reencode == how
    assert read_shards_glt("", ["photos", "out", *words]).choices.reencode == how
    assert read_shards("", ["photos", "out"]).reencode is None
    for read in (read_shards, read_shards_glt):
        with pytest.raises(ConfigError, match=r"^--short-side is about images that are encoded anew; give --reencode"):
            read("", ["photos", "out", "--short-side", "64"])
        with pytest.raises(ConfigError, match=r"^quality=80 does not go with reencode=png"):
            read("", ["photos", "out", "--reencode", "png", "--quality", "80"])
        with pytest.raises(ConfigError, match=r"quality must be in \[1, 100\], got 101"):
            read("", ["photos", "out", "--reencode", "jpg", "--quality", "101"])
    for words in (["--reencode", "jpg"], ["--engine", "ray"]):
        with pytest.raises(SystemExit):
            read_shards("", ["info", "out", *words])
        assert f"{words[0]} is about shards that are made" in capsys.readouterr().err
