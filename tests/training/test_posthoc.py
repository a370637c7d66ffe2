"""Post-hoc logit adjustment of a finished run: ``evaluate.py --posthoc-tau``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from ltcore.cli import evaluate as assess
from ltcore.cli import parsers as cli
from ltcore.errors import CheckpointError, ConfigError
from ltcore.objective.registry import BASES
from ltcore.training import checkpoint as ckpt
from ltcore.training.predict import evaluate
from tests.conftest import TINY_COUNTS
from tests.objective import toy
from tests.training.runs import run, stage2_run, tiny_run

IMAGES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
COSINE = {"model.head": "cosine", "model.cosine_scale": 30.0}
BALANCED = {
    "balanced_softmax": "adds the log class prior",
    "logit_adjust": "adds a multiple of the log class prior",
    "class_balanced": "weighs every class",
    "ldam": "weighs every class",
    "paco": "adds the log class prior",
    "gpaco": "adds the log class prior",
    "ride": "weighs every class",
    "sade": "adds log class priors",
    "bbn": "trains half of its features on a stream in which rare classes come most",
}


@pytest.fixture(scope="module")
def trained(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("posthoc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTCORE_CACHE", str(folder / "cache"))
        run(tiny_run(train__epochs=2), tiny_shards, folder / "ce")
    return folder / "ce"


NATURAL = toy.f64(TINY_COUNTS["train"]) / sum(TINY_COUNTS["train"])


def prior_of(folder: Path) -> torch.Tensor:
    """[C] of the newest checkpoint."""
    last = ckpt.find(folder / "checkpoints", "last")
    assert last is not None
    return toy.f64(last.meta["class_prior"])


def test_probabilities_are_divided_by_a_power_of_the_prior(trained: Path) -> None:
    plain = ltcore.load(trained)(IMAGES).double()
    for tau in (0.5, 1.0, 2.0):
        expected = plain / NATURAL**tau
        ours = ltcore.load(trained, posthoc_tau=tau)(IMAGES).double()
        torch.testing.assert_close(ours, expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert torch.equal(ltcore.load(trained, posthoc_tau=0.0)(IMAGES).double(), plain)


def test_closed_form(trained: Path) -> None:
    """s = (1, 0, -1) under the prior (.7, .2, .1): class 1 wins."""
    predictor = ltcore.load(trained, posthoc_tau=1.0)
    prior = toy.f64([0.7, 0.2, 0.1])
    adjusted = type(predictor)(**{**vars(predictor), "log_prior_C": prior.log()}).adjusted(toy.f64([[1, 0, -1]]))
    torch.testing.assert_close(adjusted, toy.f64([[1.356675, 1.609438, 1.302585]]), rtol=0, atol=1e-6)


def test_the_prior_is_that_of_the_stream(trained: Path, tiny_shards: str, tmp_path: Path) -> None:
    """Two 'intra' environments make it half the natural and half the uniform one, in the epochs that they weigh."""
    torch.testing.assert_close(prior_of(trained), NATURAL)
    ifl = {"objective.terms.ifl.start": 0.5, "objective.terms.ifl.milestones": ""}
    for epochs, expected in [(1, NATURAL), (2, NATURAL / 2 + 1 / 8)]:
        run(tiny_run(**ifl, train__epochs=epochs), tiny_shards, tmp_path / str(epochs))
        torch.testing.assert_close(prior_of(tmp_path / str(epochs)), expected, rtol=1e-6, atol=0)
    load = ltcore.load(tmp_path / "1", posthoc_tau=1.0)  # the base is cross-entropy: this may be adjusted
    assert load.log_prior_C is not None


def test_evaluation_predicts_by_the_adjusted_logits(
    trained: Path, tiny_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A strength that drowns the logits predicts the rarest class alone."""
    result = evaluate(ltcore.load(trained, posthoc_tau=1e6), tiny_shards, [], [])
    plain = evaluate(ltcore.load(trained), tiny_shards, [], [])
    assert (result["posthoc_tau"], plain["posthoc_tau"]) == (1e6, 0.0)
    shares = toy.f64(TINY_COUNTS["test"]) / sum(TINY_COUNTS["test"])
    assert result["splits"]["test"]["top1"] == pytest.approx(float(shares[NATURAL.argmin()]))
    assert plain["splits"]["test"] != result["splits"]["test"]

    assess.run(cli.read_evaluate("", [str(trained), "--posthoc-tau", "1", "--data", tiny_shards]))
    (file,) = (trained / "metrics").iterdir()  # what is not adjusted keeps a file of its own
    assert file.name.endswith("-test-tau1.json") and str(file) in capsys.readouterr().out
    assert json.loads(file.read_text())["posthoc_tau"] == 1.0


@pytest.mark.parametrize("base", BALANCED)
def test_a_run_that_balanced_its_classes_is_refused(tiny_shards: str, tmp_path: Path, base: str) -> None:
    experts: dict[str, Any] = {"model.num_experts": 3} if BASES[base].build.expert_head else {}
    cosine = COSINE if base in ("ldam", "ride") else {}
    bilateral = {"model.bilateral": BASES[base].build.pairs}
    run(
        tiny_run(train__epochs=1, objective__base=base, **experts, **cosine, **bilateral), tiny_shards, tmp_path / "run"
    )
    with pytest.raises(ConfigError, match=rf"posthoc_tau=1 does not go with objective.base={base} .*{BALANCED[base]}"):
        ltcore.load(tmp_path / "run", posthoc_tau=1.0)


def test_a_classifier_that_takes_the_bias_away_itself_is_refused(tiny_shards: str, tmp_path: Path) -> None:
    """TDE under cross-entropy: adjusted on top, it loses more than either gains."""
    cfg = tiny_run(train__epochs=1, model__head="tde", model__tde__alpha=1.5)
    run(cfg, tiny_shards, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"posthoc_tau=1 does not go with model.head=tde .*model.tde.alpha=1.5"):
        ltcore.load(tmp_path / "run", posthoc_tau=1.0)
    run(cfg.replace({"model.tde.alpha": 0.0}), tiny_shards, tmp_path / "plain")
    assert ltcore.load(tmp_path / "plain", posthoc_tau=1.0).posthoc_tau == 1.0


def test_every_base_is_either_refused_or_plain() -> None:
    plain = [name for name, row in BASES.items() if not row.build.balances(row.build.Config())]
    assert sorted([*plain, *BALANCED]) == sorted(BASES)
    assert plain == ["cross_entropy", "focal", "lff"]


def test_stage_2_and_old_checkpoints_and_wrong_strengths_are_refused(
    trained: Path, tiny_shards: str, tmp_path: Path
) -> None:
    run(stage2_run(trained, "tau_norm"), tiny_shards, tmp_path / "tau")
    with pytest.raises(ConfigError, match=r"does not go with stage2.method=tau_norm .*balanced twice"):
        ltcore.load(tmp_path / "tau", posthoc_tau=1.0)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="posthoc_tau must be a finite number >= 0"):
            ltcore.load(trained, posthoc_tau=wrong)
    meta = ckpt.read(trained).path / "meta.json"
    text = meta.read_text()
    meta.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "class_prior"}))
    with pytest.raises(CheckpointError, match="does not say under which class prior"):
        ltcore.load(trained, posthoc_tau=1.0)
    meta.write_text(text)


def test_other_data_are_seen_at_the_size_and_in_the_groups_of_training(tiny_shards: str, tmp_path: Path) -> None:
    run(tiny_run(data__image_size=8, train__epochs=1), tiny_shards, tmp_path / "run")
    predictor = ltcore.load(tmp_path / "run")
    assert predictor.image_size == 8 and predictor.config.data.image_size == 8
    other = Path(shutil.copytree(tiny_shards, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["shot_groups"] = ["few"] * 4
    (other / "manifest.json").write_text(json.dumps(manifest))
    here, there = (evaluate(predictor, uri, ["test"], [])["splits"]["test"] for uri in (tiny_shards, str(other)))
    assert here == there and here["many"] is not None
