"""The page of retrieval: what it says, hostile names, frames in their places, and its look in a browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltcore.data.shards.reader import ShardStore
from ltcore.evaluation.retrieval import (
    ClassPair,
    Neighbor,
    Patch,
    Prototype,
    Query,
    Retrieval,
    SharedPart,
)
from ltcore.framing import OWN_WAY
from ltcore.reporting.retrieve_page import write_retrieval
from tests.reporting.browser import CHROMIUM, measure
from tests.reporting.own_run import CLASSES, COLORS, TRAINED, Rows
from tests.shards import write_dataset

BOX = (0.0, 0.75, 0.25, 0.25)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Retrieval:
    uri = str(tmp_path_factory.mktemp("retrieve") / "shards")
    write_dataset(uri, classes=CLASSES, splits={"train": Rows("train", TRAINED)}, image_size=32)
    canvas = np.zeros((3, 32, 32), np.uint8)
    neighbors = tuple(Neighbor(n, n % 4, 1 - n / 10) for n in range(8))
    parts = (SharedPart(5, 0.5), SharedPart(9, 0.25))
    pairs = (ClassPair(1, 2, 0.9, True, parts), ClassPair(0, 2, 0.1, False, ()))
    return Retrieval(
        run="a <b>run",
        data=uri,
        data_name="alps",
        split="train",
        query_split="test",
        classes=CLASSES,
        shot_groups=("many", "medium", "few", "few"),
        num_images=171,
        num_prototypes=12,
        origin="12 prototypes",
        centering="centered",
        cosines=True,
        image_size=32,
        framing=OWN_WAY,
        queries=(
            Query("test/<img src=x>", canvas, 1, neighbors),
            Query("mean", canvas, 2, ()),
            Query("unknown", canvas, None, neighbors[:2]),
        ),
        prototypes=(
            Prototype(5, 0.25, ((1, 0.5),), tuple(Patch(n, n % 4, 0.9, BOX) for n in range(8))),
            Prototype(9, 0.01, (), (Patch(100, 1, 0.5, (0.5, 0.5, 0.25, 0.25)), Patch(101, 1, 0.4, BOX))),
        ),
        num_shown=1,
        pairs=pairs,
        borrowed=(ClassPair(2, 0, 0.4, True, parts[:1]), ClassPair(2, 1, 0.3, False, ())),
    )


@pytest.fixture(scope="module")
def page(found: Retrieval, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_retrieval(found, tmp_path_factory.mktemp("page") / "retrieve.html")


def test_it_says_what_was_found_and_takes_no_text_for_html(page: Path) -> None:
    text = page.read_text()
    assert "2 of 8 nearest training images are of the query's class" in text
    assert "2 of 8 of its class, 6 of others" in text and "so nothing is near it" in text
    for hostile in ("<b>run", "<img src=x>", '<b onerror="x">'):
        assert hostile not in text
    assert "no_<wbr>test_<wbr>image" in text and "&lt;b onerror=" in text
    assert text.count(">chance</small></td>") == 2
    assert "Prototype 5" in text and "Prototype 9" not in text
    assert text.count('class="part p5" href="#prototype-5"') == 2 and 'class="part p9" title' in text


def test_equal_findings_give_equal_bytes(found: Retrieval, page: Path, tmp_path: Path) -> None:
    assert write_retrieval(found, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_a_patch_is_shown_with_its_surroundings_inside_the_image(found: Retrieval, page: Path) -> None:
    """A cell of a quarter in a corner: 3 cells of surroundings, moved into the image; the cell is their upper right third."""
    (of_corner, *others) = re.findall(r'<i style="([^"]*)"></i>', page.read_text())
    assert of_corner == "top:0.00%;left:66.67%;height:33.33%;width:33.33%" and len(others) == 7
    source = re.search(r"\.p9 b \{ background-image: url\(data:image/jpeg;base64,([^)]*)\)", page.read_text())
    assert source is not None
    crop = Image.open(io.BytesIO(base64.b64decode(source[1]))).convert("RGB")
    assert crop.size == (80, 80)
    assert np.abs(np.asarray(crop).astype(int) - COLORS[ShardStore(found.data).labels("train")[100]]).max() < 12


@pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed")
@pytest.mark.parametrize("width", [1100, 390])
def test_it_fits_a_desktop_and_a_phone(page: Path, width: int) -> None:
    seen = measure(page, width)
    assert (seen["width"], seen["page"], seen["out"], seen["cut"]) == (width, width, [], [])
    assert len(seen["pictures"]) == 3 + 8 + 2 + 8 and min(seen["pictures"]) >= 32
