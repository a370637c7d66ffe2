"""Boxes over originals: the keyed numbers, the geometry, and agreement with the crop of canvases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltcore import hashing, rng
from ltcore.data.augment.transforms import Draw, resized_crop, square_crop
from ltcore.data.images.boxes import (
    ATTEMPTS,
    SCHEDULES,
    Box,
    Crop,
    centered_square,
    least_area,
    random_box,
    random_square,
    scaled,
)
from ltcore.data.loading.crops import CropDraws
from ltcore.data.loading.sampler import Rows

SIZES = [(64, 64), (375, 500), (500, 333), (120, 900), (7, 5), (1, 40)]


def rows(count: int, first: int = 0) -> Rows:
    index = np.arange(first, first + count)
    return Rows(index, index % 3)


def draws(count: int, *crops: Crop, seed: int = 3, epoch: int = 2) -> CropDraws:
    return CropDraws(crops, seed, epoch, rows(count))


def test_host_and_device_draw_the_same_numbers() -> None:
    index, copy = np.array([0, 5, 2**40, 2**62]), np.array([0, 1, 2, 7])
    for purpose, n in (("augment/view1/resized_crop", 22), ("x", 1)):
        expected = rng.uniform(3, 2, torch.from_numpy(index), torch.from_numpy(copy), purpose, n)
        found = hashing.uniform(3, 2, index, copy, purpose, n)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("min_area", [0.08, 0.5])
def test_over_a_canvas_the_box_is_that_of_the_device(min_area: float, square: bool) -> None:
    count, size = 300, 64
    at = torch.arange(size, dtype=torch.uint8)
    images = torch.stack([at[:, None].expand(size, size), at[None].expand(size, size)] * 2)[:3].expand(
        count, -1, -1, -1
    )
    index, copy = (torch.from_numpy(a) for a in (rows(count).index_B, rows(count).copy_B))
    crop = square_crop if square else resized_crop
    cropped = crop(images, Draw(3, 2, index, copy, "view1"), min_area)
    top, bottom = cropped[:, 0, 0, 0], cropped[:, 0, -1, 0]
    left, right = cropped[:, 1, 0, 0], cropped[:, 1, 0, -1]
    on_device = torch.stack([top, left, bottom - top + 1, right - left + 1], 1).tolist()
    drawn = draws(count, Crop("view1", min_area, square))
    assert [list(drawn.boxes(b, (size, size))[0]) for b in range(count)] == on_device


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("min_area", [0.08, 1.0])
def test_boxes_lie_inside_and_keep_area_and_aspect(size: tuple[int, int], min_area: float) -> None:
    drawn = draws(200, Crop("view1", min_area))
    for b in range(200):
        top, left, height, width = drawn.boxes(b, size)[0]
        assert 0 <= top <= size[0] - height and 0 <= left <= size[1] - width and min(height, width) >= 1
        if min(size) > 50 and max(size) / min(size) < 4 / 3 and min_area < 1:  # every draw can fit
            assert 0.078 < height * width / (size[0] * size[1]) <= 1
            assert 0.73 < width / height < 1.37


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 400), (0, 133, 100, 133)),  # too wide: 4/3
        ((400, 90), (140, 0, 120, 90)),  # too high: 3/4
        ((90, 100), (0, 0, 90, 100)),  # within the range: all of it
    ],
)
def test_where_no_draw_fits_the_largest_centered_box_is_taken(size: tuple[int, int], expected: Box) -> None:
    high_or_wide = [1 - 2**-24] * ATTEMPTS + [0.0, 1 - 2**-24] * (ATTEMPTS // 2) + [0.3, 0.7]
    assert random_box(high_or_wide, 0.99, size) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_squares_lie_inside_and_keep_their_area(size: tuple[int, int], min_area: float) -> None:
    """As in LIFT+'s code, the area is uniform between the least share and the largest square's, which may be smaller."""
    drawn = draws(400, Crop("view1", min_area, square=True))
    boxes = np.array([drawn.boxes(b, size)[0] for b in range(400)])
    top, left, height, width = boxes.T
    assert (height == width).all() and (height >= 1).all()
    assert (
        (top >= 0).all() and (left >= 0).all() and (top + height <= size[0]).all() and (left + width <= size[1]).all()
    )
    least, most = min(min_area, min(size) / max(size)), min(size) / max(size)
    if min(size) > 50:
        share = height * width / (size[0] * size[1])
        assert least - 0.02 < share.min() and share.max() <= most + 1e-9
        assert abs(share.mean() - (least + most) / 2) < 0.04
        assert len(set(left.tolist())) > 20 or size[0] >= size[1], "wide images are seen from end to end"


def test_one_draw_makes_a_square() -> None:
    numbers = [0.5, *[0.9] * 19, 0.25, 0.75]
    assert random_square(numbers, 0.08, (100, 100)) == (7, 21, 73, 73)  # 0.54 of the area
    assert random_square(numbers, 1.0, (100, 400)) == (0, 225, 100, 100)


def test_the_least_area_grows_by_the_epoch_from_its_value_to_one() -> None:
    """The convex curve is that of LIFT+'s code: 1 - sqrt(1 - t^2), t = epoch / (epochs - 1)."""
    convex = [least_area(0.08, "convex", epoch, 5) for epoch in range(5)]
    assert convex == pytest.approx([0.08, 0.109214, 0.203257, 0.391477, 1.0], abs=1e-6)
    assert [least_area(0.08, "linear", epoch, 5) for epoch in range(5)] == pytest.approx([0.08, 0.31, 0.54, 0.77, 1.0])
    assert [least_area(0.08, "concave", e, 5) for e in range(5)] == pytest.approx(
        [0.08, 0.688523, 0.876743, 0.970786, 1.0], abs=1e-6
    )
    for schedule in SCHEDULES:
        assert least_area(0.3, schedule, 0, 5) == 0.3 == least_area(0.3, schedule, 0, 1)
        assert least_area(0.3, schedule, 9, 5) == least_area(0.3, schedule, 4, 5) <= 1
    assert least_area(0.3, "constant", 4, 5) == 0.3
    last = CropDraws([Crop("view1", 0.08, True, "convex")], 3, 4, rows(50), epochs=5)
    assert {last.boxes(b, (40, 90))[0][2:] for b in range(50)} == {(40, 40)}


def test_seed_epoch_copy_index_and_view_each_matter_and_the_batch_does_not() -> None:
    both = draws(8, Crop("view1", 0.08), Crop("view2", 0.08))
    boxes = [both.boxes(b, (375, 500)) for b in range(8)]
    assert all(first != second for first, second in boxes)
    assert len({first for first, _ in boxes}) == 8
    alone = CropDraws([Crop("view2", 0.08)], 3, 2, Rows(rows(8).index_B[5:6], rows(8).copy_B[5:6]))
    assert alone.boxes(0, (375, 500)) == boxes[5][1:]
    for other in (draws(8, Crop("view1", 0.08), seed=4), draws(8, Crop("view1", 0.08), epoch=3)):
        assert other.boxes(5, (375, 500)) != boxes[5][:1]
    again = CropDraws([Crop("view1", 0.08)], 3, 2, Rows(rows(8).index_B, rows(8).copy_B + 1))
    assert again.boxes(5, (375, 500)) != boxes[5][:1]


def test_a_view_without_crop_is_the_centered_square() -> None:
    assert draws(1, Crop("view1", None)).boxes(0, (300, 500)) == [centered_square((300, 500))] == [(0, 100, 300, 300)]
    assert centered_square((7, 5)) == (1, 0, 5, 5)


def test_scaled_boxes_move_each_edge_by_at_most_half_a_pixel() -> None:
    drawn = draws(200, Crop("view1", 0.08))
    for size, stored in (((375, 500), (224, 299)), ((500, 333), (336, 224)), ((900, 900), (9, 9))):
        for b in range(200):
            top, left, height, width = drawn.boxes(b, size)[0]
            edges = (top, top + height), (left, left + width)
            s_top, s_left, s_height, s_width = scaled((top, left, height, width), size, stored)
            found = (s_top, s_top + s_height), (s_left, s_left + s_width)
            for axis in (0, 1):
                assert 0 <= found[axis][0] < found[axis][1] <= stored[axis]
                for edge, here in zip(edges[axis], found[axis], strict=True):
                    assert abs(edge * stored[axis] / size[axis] - here) <= 0.5
    assert scaled((1, 2, 3, 4), (50, 60), (50, 60)) == (1, 2, 3, 4)
    assert scaled((40, 0, 1, 60), (50, 60), (2, 2)) == (1, 0, 1, 2), "never empty"
