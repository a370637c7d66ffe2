"""The embedded data set: its counts, that nothing leaks, and that digits and colors are what they say."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ltcore.data.datasets.digits_glt import COLORS, digits_glt, enlarge, paint
from ltcore.data.datasets.glt import quota_counts
from ltcore.data.datasets.longtail import profile


@pytest.fixture(scope="module")
def source():
    return digits_glt(seed=0, val_per_class=10)


def identities(rows):
    return {row.key.split("-")[0] for row in rows}


def test_counts_are_long_tailed_over_classes_and_inside_them(source):
    tables = {}
    for name, rows in source.splits.items():
        tables[name] = np.zeros((10, 10), int)
        for row in rows:
            tables[name][row.label, row.attribute] += 1
    assert tables["train"].sum(1).tolist() == profile(110, 10, 20) and tables["train"].sum() == 369
    assert tables["train_cbl"].sum(1).tolist() == [37] * 10
    assert (tables["val"] == 10).all() and (tables["test_gbl"] == 50).all()
    for c in range(10):
        order = [(c + i) % 10 for i in range(10)]
        assert tables["test_cbl"][c].tolist() == quota_counts(50, order).tolist()
        assert tables["train"][c].argmax() == c  # a majority color of its own


def test_it_says_which_splits_show_each_digit_several_times(source):
    repeats = {split: len(rows) // len(identities(rows)) for split, rows in source.splits.items()}
    assert repeats == {"train": 1, "train_cbl": 1, "val": 10, "test_cbl": 1, "test_gbl": 10}
    assert source.provenance["images_per_picture"] == {"val": 10, "test_gbl": 10}


def test_no_digit_of_val_or_test_is_seen_elsewhere(source):
    ids = {name: identities(rows) for name, rows in source.splits.items()}
    training = ids["train"] | ids["train_cbl"]
    assert ids["test_cbl"] == ids["test_gbl"]
    assert not training & ids["val"] and not training & ids["test_gbl"] and not ids["val"] & ids["test_gbl"]
    for rows in source.splits.values():
        assert len({row.key for row in rows}) == len(rows)
    for name in ("train", "train_cbl"):
        assert len(ids[name]) == len(source.splits[name])


def test_images_show_the_digit_that_the_key_names_in_the_color_it_names(source):
    digits = load_digits()
    for row in source.splits["train"][::40]:
        identity, _, color = row.key.partition("-")
        position = int(identity.removeprefix("digit"))
        pixels = np.asarray(Image.open(io.BytesIO(row.image)))
        assert pixels.shape == (16, 16, 3) and digits.target[position] == row.label
        ink, paper = (np.array(rgb, float) for rgb in COLORS[color])
        assert list(COLORS)[row.attribute] == color
        assert (pixels[0, 0] == paper).all()
        coverage = ((pixels - paper) @ (ink - paper)) / ((ink - paper) @ (ink - paper))
        blocks = coverage[2:14, 2:14].reshape(4, 3, 4, 3).mean((1, 3))
        theirs = digits.images[position].reshape(4, 2, 4, 2).mean((1, 3))
        assert np.corrcoef(blocks.ravel(), theirs.ravel())[0, 1] > 0.95


def test_enlarging_is_smooth_and_keeps_full_and_empty():
    assert enlarge(np.zeros((8, 8))).max() == 0.0
    full = enlarge(np.ones((8, 8)))
    assert (full[2:14, 2:14] > 0.999).all() and full[:2].max() == 0.0
    half = enlarge(np.repeat([[0.0, 1.0]], 8, 0).repeat(4, 1))
    assert len(np.unique(half[8].round(3))) > 3  # a soft edge, not two blocks
    assert (paint(full, 0)[8, 8] == COLORS["red-on-mint"][0]).all()


def test_colors_are_clearly_apart():
    pairs = np.array([[*ink, *paper] for ink, paper in COLORS.values()], float)
    distance = np.linalg.norm(pairs[:, None] - pairs[None], axis=-1)
    assert len(COLORS) == 10 and distance[~np.eye(10, dtype=bool)].min() > 40


def test_statistics_are_those_of_the_training_images(source):
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row.image))) for row in source.splits["train"]]) / 255.0
    np.testing.assert_allclose(source.mean, pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(source.std, pixels.std((0, 1, 2)), atol=1e-4)
    assert source.shot_rule == "rank" and source.provenance["train_per_class"] == profile(110, 10, 20)
