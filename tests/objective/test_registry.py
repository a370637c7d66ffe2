"""The generated configuration classes, and what a new row gets without further edits."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from pydantic import TypeAdapter, ValidationError

from ltcore.objective.objective import ObjectiveConfig
from ltcore.objective.registry import BASES, STAGE2, TERMS, BaseOptions, Stage2Options, Terms

ADAPTER = TypeAdapter(ObjectiveConfig)


def test_one_field_per_row() -> None:
    assert [field.name for field in dataclasses.fields(BaseOptions)] == list(BASES)
    assert [field.name for field in dataclasses.fields(Terms)] == list(TERMS)
    assert [field.name for field in dataclasses.fields(Stage2Options)] == list(STAGE2)
    for options, table in ((BaseOptions(), BASES), (Stage2Options(), STAGE2)):
        assert all(getattr(options, name) == row.build.Config() for name, row in table.items())


def test_rows_say_what_they_are() -> None:
    for row in (*BASES.values(), *TERMS.values(), *STAGE2.values()):
        assert row.summary
        assert row.paper


def test_survives_pickling_by_name() -> None:
    terms = Terms(**{name: row.build.Config() for name, row in TERMS.items()})
    assert pickle.loads(pickle.dumps(terms)) == terms
    assert pickle.loads(pickle.dumps(BaseOptions())) == BaseOptions()


def test_plain_mappings_become_typed_sections() -> None:
    cfg = ADAPTER.validate_python({"terms": {"dro": {"radius": 2}, "ifl": {"milestones": [0.7]}}})
    assert cfg.terms.dro == TERMS["dro"].build.Config(radius=2.0)
    assert cfg.terms.ifl.milestones == (0.7,)
    assert list(cfg.active_terms()) == ["dro", "ifl"]
    assert ADAPTER.validate_python(ADAPTER.dump_python(cfg)) == cfg


def test_wrong_values_name_their_key() -> None:
    with pytest.raises(ValidationError, match="radius must be a finite number"):
        ADAPTER.validate_python({"terms": {"dro": {"radius": -1}}})
    with pytest.raises(ValueError, match=r"^prior must"):
        ObjectiveConfig(prior="lexicographic")
    with pytest.raises(ValueError, match=r"^base must be one of balanced_softmax"):
        ObjectiveConfig(base="crossentropy")
