"""Named variants of a recipe: what a sweep file and the command line may say of them."""

from __future__ import annotations

from typing import Any

import pytest

from ltcore.config.load import base_run, load_run, load_sweep
from ltcore.config.naming import name_sweep
from ltcore.config.sweep import SweepConfig, read_sweep
from ltcore.errors import ConfigError
from ltcore.tuning.identity import identity


def read(**keys: Any) -> SweepConfig:
    words = {key.replace("__", "."): value for key, value in keys.items()}
    sweep = read_sweep("compare_methods", {"sweep.recipe": "folder_small", **words})
    load_sweep(sweep)
    return sweep


def test_one_is_left_out_and_one_is_changed_from_the_command_line() -> None:
    sweep = read(sweep__variants__lpa="null", sweep__variants__dro__objective__terms__dro__weight="0.25")
    assert "lpa" not in sweep.variants and sweep.variants["dro"]["objective.terms.dro.weight"] == "0.25"
    mine = read(sweep__variants__focal__objective__base="focal")
    assert mine.variants["focal"] == {"objective.base": "focal"} and mine.size == 36


def test_name_and_identity_follow_what_was_changed() -> None:
    words = {"sweep.recipe": "folder_small", "sweep.variants.lpa": "null", "sweep.variants.ifl.objective.base": "focal"}
    assert name_sweep("compare_methods", words)["sweep.name"] == "compare_methods-folder_small-ifl_base_focal-lpa_off"
    fields = identity(read_sweep("compare_methods", words))
    assert fields["sweep.variants.ifl.objective.base"] == "focal" and fields["sweep.seeds"] == 3
    assert not any(key.startswith("sweep.variants.lpa.") for key in fields)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sweep.variants.lap": "null"}, "sweep.variants.lap: there is no such variant. Did you mean lpa?"),
        ({"sweep.variants.lpa": "on"}, "sweep.variants.lpa=on: give sweep.variants.lpa.<key>=value, or null"),
        (
            {"sweep.variants.ce": "null"},
            "variants.crt is a stage 2: .* must be the name of a variant of stage 1, got 'ce'",
        ),
        ({"sweep.variants.crt.train.epochs": "3"}, "variants.crt is a stage 2: it takes keys of stage2 alone"),
        ({"objective.base": "focal"}, "variants.ce and overrides both set objective.base"),
        ({"sweep.search": "grid"}, "search=grid does not go with 11 variants"),
        ({"sweep.space.train.optim.lr": "log:0.1,1"}, "space varies train.optim.lr, but search=variants takes only"),
        ({"sweep.variants.a b.objective.base": "focal"}, "variants has 'a b', expected a name of letters"),
        ({"sweep.variants.x.objective.bas": "focal"}, "objective.bas: unknown key. Did you mean objective.base"),
        ({"sweep.variants.x.model.name": "vgg"}, "sweep.variants.x does not go with recipe folder_small: model.name"),
        (
            {"sweep.variants.x.stage2.from_run": "balanced_softmax"},
            "sweep.variants.x does not go with recipe folder_small: .*the classes would be balanced twice",
        ),
        ({"sweep.seeds": "0"}, "sweep.seeds must be >= 1, got 0"),
        (
            {"sweep.variants.x.train.init_from": "y", "sweep.variants.y.train.init_from": "x"},
            "variants start from each other: x, y, x",
        ),
        (
            {"sweep.variants.x.train.init_from": "crt", "sweep.variants.x.objective.base": "focal"},
            "variants.x starts from crt, a stage 2, whose network is that of its stage 1: set train.init_from=ce",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(**keys)


def test_a_variant_that_is_no_mapping(tmp_path: Any) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: folder\nsearch: variants\nvariants: {a: 3}\n")
    with pytest.raises(ConfigError, match=r"sweep.variants.a=3 must map dotted keys to values"):
        read_sweep(str(tmp_path / "mine.yaml"))


def test_variants_start_from_each_other_in_chains() -> None:
    words = {"sweep.variants.features.train.init_from": "ce", "sweep.variants.features.train.freeze": "classifier"}
    words |= {"sweep.variants.features.objective.base": "cross_entropy"}
    chain = read(**words, **{"sweep.variants.head.stage2.from_run": "features"})
    assert [chain.parent(name) for name in ("ce", "features", "head", "crt")] == [None, "ce", "features", "ce"]
    assert [chain.depth(name) for name in ("ce", "features", "head", "crt")] == [0, 1, 2, 1]
    elsewhere = read(**{"sweep.variants.x.train.init_from": "/runs/ce"})
    assert elsewhere.parent("x") is None


def test_alt_doubles_the_trainings() -> None:
    assert read(sweep__alt="true").size == 2 * read().size == 66


@pytest.mark.parametrize("row", [name for name in read_sweep("lt_ladder_full").variants if name != "dro_head"])
def test_a_row_of_the_full_ladder_is_the_recipe_of_its_name(row: str) -> None:
    sweep = read_sweep("lt_ladder_full")
    control = "_no_neighbors"
    recipe = load_run(f"cifar100_lt_{row.removesuffix(control)}").to_flat()
    found = base_run(sweep).replace(sweep.started_from(row, "/runs/dro_ce")).to_flat()
    differ = {key for key in found.keys() | recipe.keys() if found.get(key) != recipe.get(key)}
    allowed = {"name", "train.init_from"} if row == "dro_features" else {"name"}
    allowed |= {"objective.terms.lpa.neighbor_mass"} if row.endswith(control) else set()
    assert differ <= allowed, differ - allowed
