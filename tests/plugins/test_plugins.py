"""Parts of others: named or installed, listed, configured, trained, stored and found again."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ltcore.cli import main
from ltcore.cli.complete import candidates
from ltcore.config import keys
from ltcore.config.load import load_run, load_sweep
from ltcore.config.schema import RunConfig
from ltcore.config.show import run_tree
from ltcore.config.sweep import read_sweep
from ltcore.data.config import DataConfig
from ltcore.data.datasets import registry as datasets
from ltcore.data.datasets.prepare import prepare
from ltcore.data.datasets.registry import find
from ltcore.errors import CheckpointError, ConfigError, PluginError
from ltcore.objective.objective import make_objective
from ltcore.objective.registry import BASES
from ltcore.plugins import distributions, loading
from ltcore.training.predict import load
from ltcore.training.same_run import differences
from tests.plugins.state import forgotten_after, install
from tests.training.runs import run, stage2_run, tiny_run

PARTS = {
    "objective.base": "tempered_margin",
    "objective.base_options.tempered_margin.temperature": 2.0,
    "objective.terms.feature_norm.weight": 0.1,
    "model.name": "tiny_net",
    "train.epochs": 2,
}


def write(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


LOSS = """\
from dataclasses import dataclass
from ltcore import Base, plugins
@plugins.loss({name!r}, summary="a loss")
class Mine(Base):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        {field}
    def forward(self, out, labels_B, ctx):
        return out.mean_logits_BC.logsumexp(1)
"""


def loss(name: str = "mine", field: str = 'size: float = 1.0\n        """A number."""') -> str:
    return LOSS.format(name=name, field=field)


# ---- known and listed


def test_entry_points_give_keys_methods_and_completion_without_an_import(installed: Path) -> None:
    found = {key: (leaf.type, leaf.default, leaf.doc) for key, leaf in keys.find("tempered_margin")}
    own = "objective.base_options.tempered_margin."
    assert list(found) == [f"{own}temperature", f"{own}squared", f"{own}margin"]
    assert found[f"{own}temperature"] == ("float", 1.0, "Divides the logits. Range > 0.")
    assert found[f"{own}margin"][2] == "Subtracted from the true logit. Range >= 0."
    section = keys.run_keys().fields["objective"].fields["terms"].fields["feature_norm"]
    assert section.optional and section.fields["weight"].default == 0.01 and section.fields["weight"].doc
    assert {leaf.allowed.interval for key, leaf in keys.find("margin.temperature")} == {"(0, inf)"}
    rows = {(row.kind, row.name) for row in keys.methods()}
    assert rows >= {
        ("base", "tempered"),
        ("term", "feature_norm"),
        ("model", "tiny_net"),
        ("data", "stripes"),
        ("stage2", "mean_rows"),
        ("callback", "watch"),
    }
    assert candidates(["train", "objective.terms.feat"], []) == [
        "objective.terms.feature_norm=",
        *(f"objective.terms.feature_norm.{name}=" for name in ("weight", "start", "scale")),
    ]
    assert candidates(["train", "callbacks.watch="], []) == ["callbacks.watch=null", "callbacks.watch=on"]
    assert candidates(["train", "model.name="], [])[-2:] == ["model.name=tiny_net", "model.name=timm:"]
    assert not [name for name in sys.modules if name.startswith("example_parts")]


def test_the_flag_makes_a_module_known_to_every_command(beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.methods(argv=["--plugin", "example_parts.watch"])
    assert "watch  " in capsys.readouterr().out
    main.keys(argv=["watch", "--plugin", "example_parts.watch"])
    assert "callbacks.watch.last_epoch = 0    (int)" in capsys.readouterr().out
    main.show(argv=["cifar100_lt_ce", "--plugin", "example_parts.losses"])
    assert "- example_parts.losses==sha256:" in capsys.readouterr().out
    words = ["train", "--plugin", "example_parts.terms", "objective.terms.feature_norm.sc"]
    assert candidates(words, []) == ["objective.terms.feature_norm.scale="]


def test_a_recipe_names_its_plugins(beside: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: cifar100_lt_ce\nplugins: [example_parts.losses]\nobjective:\n  base: tempered\n"
        "  base_options: {tempered: {temperature: 3}}\n"
    )
    cfg = load_run(str(recipe))
    assert cfg.objective.base_options.tempered.temperature == 3.0
    (pinned,) = cfg.plugins
    assert pinned.startswith("example_parts.losses==sha256:")
    assert run_tree(str(recipe)) == cfg.to_dict()
    assert RunConfig.from_dict(cfg.to_dict()) == cfg == RunConfig.from_flat(cfg.to_flat())
    assert cfg.to_flat()["objective.base_options.tempered.temperature"] == 3.0
    with pytest.raises(ConfigError, match=r"objective.base_options.tempered.temperature must be .* 0"):
        cfg.replace({"objective.base_options.tempered.temperature": -1})
    with pytest.raises(ConfigError, match=r"unknown key. Did you mean objective.base_options.tempered.temperature"):
        cfg.replace({"objective.base_options.tempered.temperatur": 1})


def test_what_is_installed_but_not_used_leaves_no_trace(installed: Path) -> None:
    plain = RunConfig(name="x").to_dict()
    used = RunConfig(name="x").replace({"objective.base": "tempered"})
    assert used.plugins == ("example_parts.losses==0.3",)
    assert RunConfig(name="x").to_dict() == plain and "plugins" not in plain and "callbacks" not in plain
    assert "tempered_margin" not in used.to_dict()["objective"]["base_options"]
    assert run_tree("cifar100_lt_ce") == load_run("cifar100_lt_ce").to_dict()


def test_options_of_a_part_that_is_not_chosen_are_refused(installed: Path) -> None:
    with pytest.raises(ConfigError, match=r"base_options.tempered has no effect with base='cross_entropy'"):
        RunConfig(name="x").replace({"objective.base_options.tempered.temperature": 2.0})


def test_objectives_for_own_loops_have_installed_parts(installed: Path) -> None:
    objective = make_objective(
        "tempered", class_counts=[5, 3], features=4, terms={"feature_norm": {"weight": 0.5}}, temperature=2.0
    )
    assert objective.base.cfg.temperature == 2.0 and list(objective.terms) == ["feature_norm"]


def test_a_sweep_varies_keys_of_the_plugins_of_its_recipe(beside: Path, tmp_path: Path) -> None:
    recipe, sweep = tmp_path / "mine.yaml", tmp_path / "vary.yaml"
    recipe.write_text("base: cifar100_lt_ce\nplugins: [example_parts.losses]\nobjective: {base: tempered}\n")
    key = "objective.base_options.tempered.temperature"
    sweep.write_text(f"recipe: {recipe}\nspace:\n  {key}: log:0.5,2\n")
    read = read_sweep(str(sweep))
    base = load_sweep(read)
    assert list(read.space) == [key] and base.plugins[0].startswith("example_parts.losses==sha256:")
    assert base.replace({key: 2.0}).plugins == base.plugins
    with pytest.raises(ConfigError, match=r"objective.base_options.tempered.temperatures: unknown key"):
        read_sweep(str(sweep), {f"sweep.space.{key}s": "log:0.5,2"})


# ---- trained, stored, continued


@pytest.fixture
def stripes(installed: Path) -> str:
    return prepare(DataConfig(uri="stripes"))


def test_a_run_of_parts_of_others_is_trained_evaluated_and_continued(stripes: str, tmp_path: Path) -> None:
    cfg = tiny_run().replace({**PARTS, "data.uri": "stripes"})
    assert {entry.partition("==")[0].partition(".")[2] for entry in cfg.plugins} == {
        "losses",
        "terms",
        "networks",
        "images",
    }
    done = run(cfg, stripes, tmp_path / "run", test=True)
    assert done["status"] == "finished" and "train/feature_norm" in done["last"]
    predictor = load(str(tmp_path / "run"))
    assert predictor.config == cfg
    more = run(cfg, stripes, tmp_path / "run", test=True)
    assert more["last"] == done["last"]


def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str) -> Path:
    """A run of the loss of a folder of sources."""
    write(tmp_path / "src", "own_loss", loss())
    with forgotten_after(), monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "src"))
        run(
            tiny_run().replace({"train.epochs": 1, "plugins": "own_loss", "objective.base": "mine"}),
            shards,
            tmp_path / "run",
        )
    return tmp_path / "run"


def test_a_stored_run_without_its_plugin_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = stored(tmp_path, monkeypatch, tiny_shards)
    then = json.loads((place / "run.json").read_text())["config"]["plugins"].partition("==")[2]
    with pytest.raises(PluginError) as missing:
        load(str(place))
    assert str(missing.value) == (
        f"plugin own_loss was {then} and is not found here: install its package, or start from the folder that holds own_loss, "
        "with --plugin own_loss."
    )
    main.report(argv=[str(place)])
    assert f"plugin own_loss was {then} and is not found here" in capsys.readouterr().err


def test_a_stored_run_whose_plugin_changed_is_not_continued_and_is_evaluated_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = stored(tmp_path, monkeypatch, tiny_shards)
    write(tmp_path / "src", "own_loss", loss() + "\n# changed\n")
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    with pytest.raises(
        PluginError, match=r"plugin own_loss was sha256:\w{12} and is sha256:\w{12} here: put back .* --plugin"
    ):
        load(str(place))
    with pytest.raises(
        CheckpointError, match=r"plugins: 'own_loss==sha256:\w{12}' there, 'own_loss==sha256:\w{12}' now"
    ):
        run(
            tiny_run().replace({"train.epochs": 1, "plugins": "own_loss", "objective.base": "mine"}), tiny_shards, place
        )
    with pytest.raises(PluginError, match=r"plugin own_loss was 0\.3 and is sha256"):
        loading.use(["own_loss==0.3"], given=True)
    loading.use(["own_loss"], given=True)
    with caplog.at_level(logging.WARNING, "ltcore"):
        assert load(str(place)).config.objective.base == "mine"
    assert re.search(r"plugin own_loss was sha256:\w+ and is sha256:\w+ here, which is used", caplog.text)


def test_another_version_of_a_distribution_is_another_plugin(installed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    flat = RunConfig(name="x").replace({"objective.base": "tempered"}).to_flat()
    shutil.rmtree(installed)
    with forgotten_after():
        install(installed, "0.4")
        with pytest.raises(PluginError, match=r"plugin example_parts.losses was 0.3 and is 0.4 here"):
            RunConfig.from_flat(flat)


@pytest.mark.parametrize(("module", "same"), [("images", True), ("watch", True), ("losses", False)])
def test_plugins_whose_numbers_are_kept_elsewhere_may_change(installed: Path, module: str, same: bool) -> None:
    """Those of a data set are in the data, whose hash is compared by itself."""
    before, after = ({"plugins": f"example_parts.{module}==0.{minor}", "seed": 0} for minor in (3, 4))
    assert (differences(before, after) == {}) == same
    assert differences(before, {**after, "seed": 1}).keys() == {"seed", *(["plugins"] if not same else [])}


def test_a_distribution_that_is_installed_anew_from_a_folder_is_another_plugin(installed: Path) -> None:
    """Under its version, as long as nobody raises it."""
    (info,) = installed.glob("*.dist-info")
    assert distributions.version_of("example_parts.losses") == "0.3"
    (info / "direct_url.json").write_text('{"url": "file:///here", "dir_info": {}}')
    found = []
    for text in ("", "# changed\n", ""):
        distributions.version_of.cache_clear()
        path = installed / "example_parts" / "terms.py"
        path.write_text(path.read_text().replace("# changed\n", "") + text)
        found.append(distributions.version_of("example_parts.losses"))
    assert re.fullmatch(r"0\.3\+sha256:[0-9a-f]{12}", found[0]) and found[0] == found[2] != found[1]


def test_helpers_beside_a_package_belong_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it imports, also late and through each other; nothing else in that folder, of Python or of a distribution."""
    write(tmp_path, "own_loss", "import torch, queue\n" + loss() + "\n\ndef late():\n    import first_helper\n")
    write(tmp_path, "first_helper", "from second.inner import x\n")
    write(tmp_path, "second.inner", "x = 1\nimport own_loss\n")
    for name in ("queue", "unrelated"):
        write(tmp_path, name, "raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("own_loss.py", "first_helper.py", "second")
    assert distributions.sources_of("own_loss") == tuple(tmp_path / name for name in names)
    before = distributions.version_of("own_loss")
    for module in ("unrelated", "queue", "second.inner", "first_helper"):
        write(tmp_path, module, "x = 2\n")
        distributions.version_of.cache_clear()
        changes = distributions.version_of("own_loss") != before
        assert changes == (module not in ("unrelated", "queue")), module
        before = distributions.version_of("own_loss")


def test_stage_2_of_a_plugin_keeps_the_plugins_of_stage_1(stripes: str, tmp_path: Path) -> None:
    run(tiny_run().replace({**PARTS, "train.epochs": 1}), stripes, tmp_path / "first")
    done = run(stage2_run(tmp_path / "first", "mean_rows"), stripes, tmp_path / "second")
    assert done["status"] == "finished"
    named = [entry.partition("==")[0] for entry in done["config"]["plugins"].split(",")]
    assert set(named) == {"example_parts." + name for name in ("losses", "terms", "networks", "classifiers")}


# ---- broken ones

BROKEN = {
    "imports nothing that exists": (
        "import no_such_module\n" + loss(),
        "own cannot be imported (ModuleNotFoundError: No module",
    ),
    "registers nothing": ("x = 1\n", "own registers nothing: its classes need one of @plugins.loss"),
    "is no Python": ("def (\n", "own.py:1 is no Python (invalid syntax)"),
    "has a taken name": (loss("focal"), "own: the loss 'focal' exists already in ltcore"),
    "computes its name": (loss().replace("'mine'", "'mi' + 'ne'"), "needs name as a text that is written out"),
    "computes a default": (loss(field="size: float = max(1, 2)"), "default max(1, 2) must be a constant"),
    "has an odd type": (loss(field="size: complex = 1.0"), "annotates size with complex, expected int, float, bool"),
    "has a table": (loss(field="size: dict[str, float] | None = None"), "annotates size with dict"),
    "has nested lists": (loss(field="size: tuple[tuple[int, int], ...] = ()"), "annotates size with tuple"),
    "has an untyped list": (loss(field="size: tuple = ()"), "annotates size with tuple, expected"),
    "has a word of Python for a name": (loss(name="lambda"), "words of Python's syntax are none"),
    "has no default": (loss(field="size: float"), "gives size no default"),
    "is not frozen": (loss().replace("frozen=True, ", ""), "needs a frozen dataclass Config in its class"),
    "has a bad name": (loss("Mine-1"), "a name consists of small letters, digits and '_'"),
    "registers in secret": (
        loss() + "\nplugins.loss('secret', summary='a loss')(Mine)\n",
        "registers the loss 'secret' in a way that its source does not show",
    ),
    "fails": (loss() + "\nraise RuntimeError('no\\nway')\n", "own cannot be imported (RuntimeError: no way)."),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_named_with_the_reason_in_one_sentence(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, reason = BROKEN[what]
    write(tmp_path, "own", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError) as broken:
        load_run("cifar100_lt_ce", {"plugins": "own"})
    said = str(broken.value)
    assert reason in said and said.startswith("plugin own") and "\n" not in said and said.endswith(".")
    assert "mine" not in BASES


def test_two_plugins_with_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "one", loss())
    write(tmp_path, "two", loss())
    monkeypatch.syspath_prepend(str(tmp_path))
    loading.use(["one"])
    with pytest.raises(PluginError, match=r"plugin two has the loss 'mine' of two, which exists already in plugin one"):
        loading.use(["two"])
    assert loading.use(["one"]) == ("one",)


def test_an_entry_point_without_its_part_is_named(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    (info,) = installed.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[ltcore.losses]\nother = example_parts.losses\n")
    keys.methods()
    said = r"plugin example_parts.losses of the distribution example_parts has no loss 'other'"
    assert re.search(said, caplog.text) and "left out, with other, tempered" in caplog.text
    with pytest.raises(PluginError, match=said):
        load_run("cifar100_lt_ce", {"objective.base": "other"})


def test_an_installed_part_with_a_name_of_ours_is_left_out_of_runs(
    installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its kind: it may have had the name before we did."""
    views = installed / "example_parts" / "views.py"
    views.write_text(views.read_text().replace('"channel_drop"', '"crop_flip"'))
    (info,) = installed.glob("*.dist-info")
    points = info / "entry_points.txt"
    points.write_text(points.read_text().replace("channel_drop =", "crop_flip ="))
    run = load_run("cifar100_lt_ce")
    assert run.augment.view1 == "crop_flip" and run.plugins == ()
    assert "'crop_flip' exists already in ltcore" in caplog.text and "left out" in caplog.text


def test_entry_points_that_cannot_be_read_are_said(installed: Path, caplog: pytest.LogCaptureFixture) -> None:
    (info,) = installed.glob("*.dist-info")
    (info / "entry_points.txt").write_text("[ltcore.losses]\n[ltcore.losses]\n")
    assert load_run("cifar100_lt_ce").plugins == ()
    assert "entry_points.txt of a plugin cannot be read (While reading" in caplog.text and len(caplog.records) == 1


def install_own(site: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution whose module has this source, and an entry point for its loss."""
    write(site, "own", text)
    info = site / "own-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[ltcore.losses]\nmine = own\n")
    (info / "RECORD").write_text("own.py,,\n")
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_that_is_installed_stops_only_what_needs_it(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text, reason = BROKEN[what]
    install_own(tmp_path, text, monkeypatch)
    for _ in range(2):
        assert load_run("cifar100_lt_ce").plugins == () and load_run("cifar100_lt_ce", {"objective.base": "focal"})
        assert keys.methods() and find("/a/folder")
    imported = ("imports nothing that exists", "is not frozen", "registers in secret", "fails")
    assert len(caplog.records) == (what not in imported), "said once, or found by importing alone"
    for overrides in ({"plugins": "own"}, {"objective.base": "mine"}):
        if overrides == {"objective.base": "mine"} and what == "has a taken name":
            continue  # whose entry point has another name than its part
        with pytest.raises(PluginError, match="plugin own") as broken:
            load_run("cifar100_lt_ce", overrides)
    assert reason.removeprefix("own ") in str(broken.value) or "has no loss 'mine'" in str(broken.value)


def test_a_key_of_a_broken_plugin_is_unknown_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_own(tmp_path, "def (\n", monkeypatch)
    with pytest.raises(ConfigError, match=r"base_options.mine.size: unknown key.* plugin own: .*own.py:1 is no Python"):
        load_run("cifar100_lt_ce", {"objective.base_options.mine.size": "1"})


def test_a_source_of_images_that_cannot_be_imported_stops_no_other(
    installed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = installed / "example_parts" / "images.py"
    images.write_text(images.read_text() + "\nraise RuntimeError('no')\n")
    assert "stripes" not in datasets.names() and "cifar10" in datasets.names()
    assert len(caplog.records) == 1 and "example_parts.images cannot be imported (RuntimeError: no)" in caplog.text
    with pytest.raises(PluginError, match=r"example_parts\.images cannot be imported"):
        prepare(DataConfig(uri="stripes"))


def test_of_two_installed_parts_with_one_name_the_later_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install_own(tmp_path / "one", loss(), monkeypatch)
    write(tmp_path / "two", "other", loss())
    (tmp_path / "two" / "other-1.dist-info").mkdir()
    (tmp_path / "two" / "other-1.dist-info" / "entry_points.txt").write_text("[ltcore.losses]\nmine = other\n")
    monkeypatch.syspath_prepend(str(tmp_path / "two"))
    assert load_run("cifar100_lt_ce").plugins == ()
    assert "plugin own has the loss 'mine' of own, which exists already in plugin other" in caplog.text
    assert loading.use(["own"]) == ("own",) and loading.known_parts()["loss", "mine"][0] == "own"


@pytest.mark.parametrize("name", ["own.py", "folder/own", "no_such_plugin", "own loss"])
def test_what_is_no_module_is_said(name: str) -> None:
    with pytest.raises(PluginError, match=rf"plugin '?{name}'? is (no module: give its dotted name|not found)"):
        loading.use([name])


def test_a_package_is_read_with_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("from . import inner\nfrom .deep.more import Mine\n")
    write(tmp_path, "pack.inner", loss("inner_loss"))
    write(tmp_path, "pack.deep.__init__", "")
    write(tmp_path, "pack.deep.more", loss("deep_loss"))
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = RunConfig(name="x").replace({"plugins": ["pack"], "objective.base": "deep_loss"})
    assert {found.name for found in loading.known()[0].parts} == {"inner_loss", "deep_loss"}
    assert cfg.plugins[0].startswith("pack==sha256:")


def test_the_working_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "here_alone", loss())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match="plugin here_alone is not found"):
        loading.use(["here_alone"])  # as a stored run names it, beside which a stranger may have put such a module
    assert loading.use(["here_alone"], named=True) == ("here_alone",)


def test_a_stored_run_imports_nothing_from_the_working_directory(
    tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_run(train__epochs=1), tiny_shards, tmp_path / "run")
    (found,) = (tmp_path / "run" / "checkpoints").glob("last-*/meta.json")
    meta = json.loads(found.read_text())
    meta["config"]["plugins"] = "laid_beside"
    found.write_text(json.dumps(meta))
    write(tmp_path, "laid_beside", "raise SystemExit('executed')\n" + loss())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match="laid_beside"):
        load(found.parent)


def test_one_that_is_edited_after_its_import_asks_for_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, which would go on with the module that it has, while workers get the files."""
    write(tmp_path, "own", loss())
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = load_run("cifar100_lt_ce", {"plugins": "own", "objective.base": "mine"})
    assert load_run("cifar100_lt_ce", {"plugins": "own"}).plugins == cfg.plugins
    write(tmp_path, "own", loss() + "\n# edited\n")
    with pytest.raises(PluginError, match=r"plugin own was sha256:.* Restart the process"):
        load_run("cifar100_lt_ce", {"plugins": "own"})
    assert type(cfg).from_dict(cfg.to_dict()) == cfg, "what is stored is read back all the same"
    write(tmp_path, "own", loss())
    load_run("cifar100_lt_ce", {"plugins": "own"})


def test_a_package_whose_modules_register_parts_names_them(installed: Path) -> None:
    with pytest.raises(
        PluginError, match=r"example_parts registers nothing itself, but example_parts.*losses.* do: name"
    ):
        loading.use(["example_parts"])
