"""The table of keys is read from source text; here it is held against the imported dataclasses."""

import dataclasses
import subprocess
import sys
import typing

import pytest

from ltcore.config import keys, reader
from ltcore.config.schema import RunConfig
from ltcore.config.sweep import SweepConfig
from ltcore.data.augment.policies import AUGMENTS
from ltcore.data.datasets.registry import DATASETS
from ltcore.data.loading.class_sampling import SAMPLINGS
from ltcore.models.heads import HEADS
from ltcore.models.registry import MODELS
from ltcore.objective.registry import BASES, STAGE2, TERMS


def live_leaves(kind, prefix=""):
    """(key, type, default) by introspection, the way the source reader must see them."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        inner = [t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)]
        if inner and typing.get_origin(hint) is not dict:
            yield from live_leaves(inner[0], f"{key}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield key, hint, keys.REQUIRED if default is dataclasses.MISSING else default


@pytest.mark.parametrize(("kind", "table"), [(RunConfig, keys.run_keys), (SweepConfig, keys.sweep_keys)])
def test_source_and_classes_have_the_same_keys_and_defaults(kind, table):
    read = {key: leaf.default for key, leaf in keys.leaves(table())}
    live = {key: default for key, _, default in live_leaves(kind)}
    assert read == live
    assert {key: type(value) for key, value in read.items()} == {key: type(value) for key, value in live.items()}


def test_source_and_classes_have_the_same_types():
    types = {"int": int, "float": float, "str": str, "bool": bool, "tuple": tuple}
    for (key, leaf), (live_key, hint, _) in zip(keys.leaves(keys.run_keys()), live_leaves(RunConfig), strict=True):
        assert key == live_key
        assert eval(leaf.type, types) == hint, key


def test_a_default_instance_has_the_defaults_of_the_table():
    run = RunConfig(name="x")
    for key, leaf in keys.leaves(keys.run_keys()):
        value = run
        for name in key.split("."):
            value = None if value is None else getattr(value, name)
        assert key.startswith(("name", "objective.terms.", "stage2.")) or value == leaf.default, key


@pytest.mark.parametrize("table", [keys.run_keys, keys.sweep_keys])
def test_every_key_is_documented(table):
    bare = [key for key, leaf in keys.leaves(table()) if len(leaf.doc) < 10]
    assert not bare, f"write a docstring under {', '.join(bare)}"


def test_sections_are_documented_and_terms_and_stage_2_alone_are_optional():
    root = keys.run_keys()
    terms = root.fields["objective"].fields["terms"]
    assert list(terms.fields) == list(TERMS)
    for name, section in terms.fields.items():
        assert section.optional and section.doc == TERMS[name].summary
    sections = {name: s for name, s in root.fields.items() if isinstance(s, keys.Section)}
    assert [name for name, s in sections.items() if s.optional] == ["stage2"]
    assert all(s.doc for s in sections.values())
    methods = root.fields["stage2"].fields["options"]
    assert list(methods.fields) == list(STAGE2)
    assert all(not s.optional and s.doc == STAGE2[name].summary for name, s in methods.fields.items())


def test_inherited_fields_come_first_and_keep_the_docs_they_do_not_replace():
    dro = keys.run_keys().fields["objective"].fields["terms"].fields["dro"]
    assert list(dro.fields)[:2] == ["weight", "start"]
    assert dro.fields["weight"].default == TERMS["dro"].build.Config().weight


def test_methods_are_the_registries():
    rows = {(m.kind, m.name): (m.summary, m.paper) for m in keys.methods()}
    tables = {"base": BASES, "term": TERMS, "stage2": STAGE2, "head": HEADS, "model": MODELS, "data": DATASETS}
    tables |= {"augmentation": AUGMENTS, "sampler": SAMPLINGS}
    assert rows == {(k, n): (row.summary, row.paper) for k, table in tables.items() for n, row in table.items()}


def test_the_own_keys_of_stage_2_exist():
    known = [
        *(key for key, _ in keys.leaves(keys.run_keys())),
        "callbacks.those_of_plugins",
        "metrics.those_of_plugins",
    ]
    assert all(
        any(key == own or (key.startswith(own) and own.endswith(".")) for key in known) for own in keys.STAGE2_OWN
    )
    assert keys.comes_from_stage1("train.epochs") and not keys.comes_from_stage1("stage2.options.crt.lr")
    assert not keys.comes_from_stage1("name") and keys.comes_from_stage1("data.uri_of_nothing")


def test_find_takes_parts_and_patterns():
    assert [key for key, _ in keys.find("optim.lr")] == ["train.optim.lr"]
    assert {key for key, _ in keys.find("objective.terms.*.weight")} == {f"objective.terms.{t}.weight" for t in TERMS}
    assert ("sweep.num_trials", 8) in [(key, leaf.default) for key, leaf in keys.find("sweep")]
    assert keys.find("no-such-key") == []


def test_a_default_that_is_computed_is_refused_by_file_and_line(tmp_path, monkeypatch):
    (tmp_path / "ltcore").mkdir()
    (tmp_path / "ltcore" / "odd.py").write_text("class A:\n    x: float = compute()\n")
    monkeypatch.setattr(reader, "PACKAGE", tmp_path / "ltcore")
    module = reader.Module("ltcore.odd")
    with pytest.raises(TypeError, match=r"odd.py:2: default compute\(\) must be a constant"):
        module.section(module.names["A"])


def test_reading_the_keys_imports_nothing_heavy():
    code = (
        "import sys; from ltcore.config import keys; keys.run_keys(); keys.sweep_keys(); keys.methods();"
        "print([m for m in ('torch', 'numpy', 'ray', 'pydantic', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_of_a_text_encoder_decide_where_it_is_asked_alone():
    flat = {"model.head_init": "random", "model.text.prompt": "a {}."}
    assert keys.effective(flat) == {"model.head_init": "random"}
    assert keys.effective({**flat, "model.head_init": "text"}) == {**flat, "model.head_init": "text"}
