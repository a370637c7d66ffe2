"""What a person reads of the attributes of a data set's classes."""

from ltcore.data.shards.attribute_table import attribute_lines
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.source import Sample
from ltcore.data.shards.validate import describe
from tests.data.small import tiny_png
from tests.shards import write_dataset


def write(uri, cells, classes, attributes, provenance=()):
    """``cells`` are (label, attribute, images)."""
    samples = [
        Sample(f"k{label}-{attribute}-{n}", tiny_png(n), "png", label, attribute)
        for label, attribute, count in cells
        for n in range(count)
    ]
    write_dataset(
        uri,
        name="pets",
        classes=classes,
        attributes=attributes,
        splits={"train": samples},
        image_size=8,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
        shot_rule="rank",
        provenance=dict(provenance),
    )
    return uri


def lines_of(uri):
    return attribute_lines(uri, read_manifest(uri))


def test_each_class_names_its_attributes_most_frequent_first(tmp_path):
    uri = write(
        str(tmp_path / "x"), [(0, 1, 3), (0, 0, 1), (1, 2, 2), (1, 0, 2), (1, -1, 1)], ["cat", "mouse"], ["a", "b", "c"]
    )
    assert lines_of(uri) == [
        "attributes of train, most frequent first",
        "  cat   b 3, a 1",
        "  mouse a 2, c 2, unknown 1",
    ]
    assert "\n  attributes of train, most frequent first\n    cat   b 3, a 1\n" in describe(uri)


def test_many_attributes_and_many_classes_are_counted(tmp_path):
    names = [f"a{n}" for n in range(9)]
    cells = [(0, n, 9 - n) for n in range(9)] + [(c, 0, 1) for c in range(1, 23)]
    lines = lines_of(write(str(tmp_path / "x"), cells, [f"c{c:02}" for c in range(23)], names))
    assert lines[1] == "  c00 a0 9, a1 8, a2 7, a3 6, a4 5, a5 4, 3 more 6"
    assert len(lines) == 22 and lines[-1] == "  and 3 more classes"


def test_data_without_attributes_have_no_table(tmp_path):
    assert lines_of(write(str(tmp_path / "x"), [(0, -1, 2), (1, -1, 2)], ["cat", "dog"], [])) == []
    assert lines_of(write(str(tmp_path / "y"), [(0, -1, 2), (1, -1, 2)], ["cat", "dog"], ["a"])) == []


def test_a_long_provenance_is_shown_in_brief(tmp_path):
    noted = {"sizes": list(range(1000)), "short": {f"n{c}": 4 for c in range(30)}, "few": [1, 2]}
    shown = describe(write(str(tmp_path / "x"), [(0, -1, 2), (1, -1, 2)], ["cat", "dog"], [], noted))
    assert "18, 19, ... (1,000)]" in shown and "'n26': 4, ... (30)}" in shown and "few: [1, 2]" in shown


def test_names_of_others_reach_no_terminal_raw(tmp_path):
    uri = write(str(tmp_path / "x"), [(0, 0, 1), (1, 0, 1)], ["cat", "dog\x1b[2J"], ["a\x1b[31m"])
    assert "\x1b" not in describe(uri) and "dog" in describe(uri)
