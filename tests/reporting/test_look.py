"""The report of one run as a browser shows it, at the width of a desktop and of a phone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltcore.reporting.report import make_report
from tests.reporting import own_run
from tests.reporting.browser import CHROMIUM, measure, screenshot

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is installed")
DESKTOP_PX, PHONE_PX = 1100, 390


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look") / "run"
    own_run.write(folder)
    return make_report([folder])


@pytest.fixture(scope="module")
def page_of_many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "run"
    own_run.write(folder)
    own_run.many_classes(folder, 200)
    return make_report([folder])


@pytest.mark.parametrize("width", [DESKTOP_PX, PHONE_PX])
def test_everything_fits_and_the_pictures_are_there(page: Path, page_of_many: Path, width: int) -> None:
    few = measure(page, width)
    assert len(few["pictures"]) == (6 + 6 + 6 + 2) + (6 + 6 + 5) + 3 * (4 + 2) - 1 and min(few["pictures"]) >= 40
    for found in (few, measure(page_of_many, width)):
        assert (found["width"], found["page"]) == (width, width)
        assert (found["out"], found["cut"]) == ([], [])
        assert min(found["figures"]) > 250, "a figure so small cannot be read"


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("<p style='width: 450px'>too broad</p>", "out"),
        ("<table style='table-layout: fixed'><tr><td>too-broad-for-its-cell<td>b<td>c<td>d<td>e</table>", "cut"),
    ],
)
def test_what_does_not_fit_is_noticed(page: Path, tmp_path: Path, broken: str, what: str) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text().replace("<footer", f"{broken}<footer"))
    found = measure(bad, PHONE_PX)
    assert len(found[what]) == 1 and "too" in found[what][0]
    assert (found["page"] > PHONE_PX) == (what == "out")


def test_the_picture_of_a_page_has_its_colors_and_margins(page: Path, tmp_path: Path) -> None:
    shown = Image.open(screenshot(page, tmp_path / "phone.png", PHONE_PX, 3000)).convert("RGB")
    assert shown.size == (PHONE_PX, 3000)
    pixels_HW3 = np.asarray(shown).astype(int)
    for color in own_run.COLORS[:3]:
        near = np.abs(pixels_HW3 - color).max(-1) < 12
        assert near.sum() > 2000, f"no picture in {color}"
    assert len(np.unique(pixels_HW3[:, -8:].reshape(-1, 3), axis=0)) == 1, "the right margin is not empty"
