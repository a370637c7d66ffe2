"""Attributes by file and by folder level, and which images they reach."""

import json

import pytest

from ltcore import limits
from ltcore.data.config import DataConfig
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.given import read_attributes
from ltcore.data.glt.pool import open_pool
from ltcore.errors import ConfigError, DataError
from tests.data.nested import TOTAL, flat_folder, nested_folder, nested_pool


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    return nested_folder(tmp_path_factory.mktemp("nested"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return flat_folder(tmp_path_factory.mktemp("flat"))


def by_name(pool):
    """Key -> (class, attribute) of every image."""
    return {item.key: (pool.classes[item.label], pool.attributes[item.attribute]) for item in pool.items}


def test_a_folder_level_is_the_attribute_and_the_others_the_class(nested):
    pool, _ = nested_pool(nested)
    assert len(pool.items) == TOTAL and pool.classes == ("ant", "bee", "cat")
    assert all(key.split("/")[:2] == [*pair] for key, pair in by_name(pool).items())
    other, _ = nested_pool(nested, attribute_level=1)
    assert by_name(other) == {key: (attribute, name) for key, (name, attribute) in by_name(pool).items()}
    assert list(pool.keys) == sorted(pool.keys)


def test_levels_that_are_not_there_are_refused(nested, flat):
    with pytest.raises(DataError, match=r"two levels of folders or more.*ant has 1"):
        nested_pool(flat)
    with pytest.raises(DataError, match="ant/day has 2"):
        nested_pool(nested, attribute_level=3)
    with pytest.raises(ConfigError, match="without --classes-from"):
        open_pool(DataConfig(uri=str(nested), classes_from="depth"), GltChoices(attribute_level=2))


def written(folder, kind, pairs):
    file = folder / f"attributes.{kind}"
    if kind == "json":
        file.write_text(json.dumps(dict(pairs)))
    elif kind == "csv":
        file.write_text("\n".join(["path,attribute", *(f"{path},{name}" for path, name in pairs)]))
    else:
        file.write_text("\n".join(f"{path} {name}" for path, name in pairs))
    return str(file)


@pytest.mark.parametrize("kind", ["json", "csv", "txt"])
def test_a_file_gives_attributes_by_path(flat, tmp_path, kind):
    paths = sorted(path.relative_to(flat).as_posix() for path in flat.rglob("*.png"))
    pairs = [(path, path.split("/")[1].split("-")[0]) for path in paths[:-3]]
    choices = GltChoices(attributes_file=written(tmp_path, kind, pairs))
    pool, _ = open_pool(DataConfig(uri=str(flat)), choices)
    assert pool.attributes == ("day", "dusk", "night")
    assert [item.path for item in pool.items if item.attribute < 0] == paths[-3:]
    expected = dict(pairs)
    assert all(expected[item.path] == pool.attributes[item.attribute] for item in pool.items if item.attribute >= 0)


def test_numbers_are_sorted_by_value(tmp_path):
    names, by_path, _ = read_attributes(written(tmp_path, "json", [("a", 10), ("b", 9), ("c", "100")]))
    assert names == ("9", "10", "100") and by_path["a"] == "10"


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json", "[1]", "holds a list"),
        ("json", "{", "no readable json"),
        ("json", '{"a": {}}', "expected the name of an attribute"),
        ("json", "{}", "gives no image an attribute"),
        ("txt", "a x\na y\n", "line 2: a has two attributes, x and y"),
        ("txt", "ax\n", "expected 'path label'"),
    ],
)
def test_files_that_make_no_sense_are_named(tmp_path, kind, text, words):
    file = tmp_path / f"a.{kind}"
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        read_attributes(str(file))


def test_a_file_with_more_in_it_than_any_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_JSON_VALUES", 100)
    file = tmp_path / "a.json"
    file.write_text('{"a": [' + "[]," * 200 + "0]}")
    with pytest.raises(DataError, match="about 402 values, expected at most 100"):
        read_attributes(str(file))


def test_a_file_about_other_images_is_refused(flat, tmp_path):
    choices = GltChoices(attributes_file=written(tmp_path, "txt", [("elsewhere/1.png", "x")]))
    with pytest.raises(
        DataError, match=r"none of its 1 paths is an image; the first is elsewhere/1.png, and an image is ant/"
    ):
        open_pool(DataConfig(uri=str(flat)), choices)
