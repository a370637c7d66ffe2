import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ltcore.cli import parsers as cli
from ltcore.cli.entry import run_main
from ltcore.config.load import load_run
from ltcore.config.schema import RunConfig
from ltcore.config.show import show_run, show_sweep
from ltcore.errors import CapacityError, ConfigError, DataError, StallError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("LTCORE_DATA", "LTCORE_STORAGE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_recipe_the_data_choose_one_and_a_sweep_is_the_demo():
    args = cli.read_train("doc", ["--data", "photos"])
    assert (args.recipe, args.overrides, args.engine) == ("", {"data.uri": "photos"}, "auto")
    assert (args.workers, args.storage, args.fresh, args.dry_run, args.debug) == (None, None, False, False, False)
    tune = cli.read_tune("doc", [])
    assert (tune.sweep, tune.overrides, tune.max_hours, tune.max_gpus) == ("tune_lpa", {}, None, None)


def test_neither_recipe_nor_data_is_answered_by_what_to_give(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.read_train("doc", ["train.epochs=3"])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "`ltcore recipes` lists" in said and "--data FOLDER" in said and "digits_glt_lpa_dro_ifl" in said


def test_words_and_flags_mix_in_any_order():
    words = ["train.epochs=3", "--engine", "train", "cifar100_lt_ce", "--workers", "1-4", "objective.terms.dro=null"]
    args = cli.read_train("doc", [*words, "--gpus-per-worker", "0", "--cpus-per-worker", "2", "--fresh", "--debug"])
    assert args.recipe == "cifar100_lt_ce"
    assert args.overrides == {"train.epochs": "3", "objective.terms.dro": "null"}
    assert (args.engine, args.workers, args.gpus_per_worker, args.cpus_per_worker) == ("train", (1, 4), 0.0, 2.0)
    assert args.fresh and args.debug


def test_flags_about_the_run_become_overrides():
    args = cli.read_train("doc", ["--data", "s3://b/d", "--seed", "3", "--name", "n"])
    assert args.overrides == {"data.uri": "s3://b/d", "seed": "3", "name": "n"}
    tune = cli.read_tune(
        "doc",
        ["cifar100_lt_lpa", "--seed", "1", "--name", "n", "--num-trials", "4", "--search", "tpe", "--stall-s", "9"],
    )
    assert tune.overrides == {
        "seed": "1",
        "sweep.recipe": "cifar100_lt_lpa",
        "sweep.name": "n",
        "sweep.num_trials": "4",
        "sweep.search": "tpe",
        "sweep.stall_s": "9.0",
    }


def test_trials_alone_share_a_gpu_as_is_measured(capsys):
    assert cli.read_tune("doc", ["--gpus-per-worker", "auto"]).gpus_per_worker == "auto"
    assert cli.read_tune("doc", ["--gpus-per-worker", "0.25"]).gpus_per_worker == 0.25
    assert cli.read_tune("doc", []).gpus_per_worker is None
    for read, word, expected in (
        (cli.read_tune, "half", "a number >= 0, or auto, got half"),
        (cli.read_train, "auto", "a number >= 0, got auto"),
    ):
        with pytest.raises(SystemExit):
            read("doc", ["--gpus-per-worker", word])
        assert f"expected {expected}" in capsys.readouterr().err


def test_a_value_may_hold_an_equals_sign():
    assert cli.read_train("doc", ["data.uri=s3://b/k?x=1"]).overrides == {"data.uri": "s3://b/k?x=1"}


def test_environment_comes_before_the_recipe_and_after_what_is_typed(monkeypatch):
    monkeypatch.setenv("LTCORE_DATA", "gs://env")
    monkeypatch.setenv("LTCORE_STORAGE", "gs://runs")
    assert cli.read_train("doc", []).overrides == {"data.uri": "gs://env"}
    assert cli.read_train("doc", ["--data", "x"]).overrides == {"data.uri": "x"}
    assert cli.read_tune("doc", ["data.uri=y"]).overrides == {"data.uri": "y"}
    assert cli.read_train("doc", []).storage == "gs://runs"
    assert cli.read_train("doc", ["--storage", "here"]).storage == "here"
    assert cli.read_evaluate("doc", ["ckpt"]).data == "gs://env"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "b"], "one recipe expected, got a and b"),
        (["--seed", "1", "seed=2"], "seed is given twice: 2 and 1"),
        (["seed=1", "seed=2"], "seed is given twice: 1 and 2"),
        (["--workers", "4-2"], "expected N or MIN-MAX, got 4-2"),
        (["--workers", "0"], "expected a whole number >= 1, got 0"),
        (["--cpus-per-worker", "nan"], "expected a number > 0, got nan"),
        (["--gpus-per-worker", "-1"], "expected a number >= 0, got -1"),
        (["--seed", "x"], "expected a whole number >= 0, got x"),
        (["--engine", "spark"], "invalid choice: 'spark'"),
        (["--eng", "train"], "unrecognized arguments: --eng"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_why(capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        cli.read_train("doc", argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_evaluate_reads_a_checkpoint_or_images(capsys):
    args = cli.read_evaluate("doc", ["runs/x", "--split", "test_cbl", "--split", "test_gbl", "--output", "m.json"])
    assert (args.checkpoint, args.splits, args.protocols, args.output) == (
        "runs/x",
        ("test_cbl", "test_gbl"),
        (),
        "m.json",
    )
    assert cli.read_evaluate("doc", ["runs/x", "a.png", "b.png"]).images == ("a.png", "b.png")
    assert cli.read_evaluate("doc", ["runs/x", "--protocol", "clt"]).protocols == ("clt",)
    taus = [cli.read_evaluate("doc", ["runs/x", *more]).posthoc_tau for more in ([], ["--posthoc-tau", "1.5"])]
    assert taus == [0.0, 1.5]
    for argv in (["x", "--split", "a", "--protocol", "clt"], []):
        with pytest.raises(SystemExit):
            cli.read_evaluate("doc", argv)


@pytest.mark.parametrize(
    ("argv", "predicts"),
    [
        (["a.png"], True),
        (["folder", "--output", "p.csv"], True),
        (["shards", "--split", "test", "--engine", "ray"], True),
        (["--data", "shards", "--split", "test", "--output", "p.parquet", "--logits", "--top-k", "5"], True),
        (["--output", "p.jsonl"], True),
        (["--data", "shards", "--output", "m.json"], False),
        ([], False),
    ],
)
def test_images_or_the_ending_of_the_output_ask_for_predictions(argv, predicts):
    assert cli.read_evaluate("doc", ["run", *argv]).predicts is predicts


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["a.png", "--data", "y"],
            "IMAGES are predicted as they are, --data is a data set with splits; give one of the",
        ),
        (
            ["a.png", "--output", "m.json"],
            "predictions are written as .parquet, .csv, .jsonl; choose one by the ending",
        ),
        (["--output", "m.txt"], "expected the ending .json for metrics, or .parquet, .csv, .jsonl for predictions"),
        (["a.png", "b.png", "--split", "test"], "--split and --protocol choose images of one data set"),
        (["--top-k", "5"], "--top-k, --logits and --engine ray are of predictions; give IMAGES, or --output with the"),
        (["--engine", "ray"], "--engine ray are of predictions"),
        (["a.png", "--logits"], "--logits needs --output FILE.parquet or FILE.jsonl"),
        (["a.png", "--logits", "--output", "p.csv"], "--logits needs --output FILE.parquet or FILE.jsonl"),
        (["a.png", "--top-k", "0"], "expected a whole number >= 1, got 0"),
    ],
)
def test_what_would_be_of_metrics_and_predictions_at_once_is_refused(capsys, argv, message):
    with pytest.raises(SystemExit):
        cli.read_evaluate("doc", ["x", *argv])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("lr: no."), 2, "error: lr: no.\n"),
        (DataError("shard x is short."), 1, "error: shard x is short.\n"),
        (CapacityError("no GPU."), 2, "error: no GPU.\n"),
        (StallError("silence."), 3, "error: silence.\n"),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd; run again with --debug\n"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(capsys, monkeypatch, error, code, message):
    def main() -> None:
        raise error

    for argv, traceback in ((["x"], False), (["x", "--debug"], True)):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as caught:
            run_main(main)
        err = capsys.readouterr().err
        assert caught.value.code == code
        assert err.endswith(message) and ("Traceback" in err) is traceback and (err == message) is not traceback


def test_interrupt_exits_with_130_and_one_line(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 130
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_result_of_main_is_the_exit_code():
    for result, code in ((None, 0), (0, 0), (3, 3)):
        with pytest.raises(SystemExit) as caught:
            run_main(lambda result=result: result)
        assert caught.value.code == code


# ---- what --show prints, without torch, is what a run would get


@pytest.mark.parametrize("recipe", ["digits_glt_lpa_dro_ifl", "cifar100_lt_lpa_dro_ifl", "cifar100_lt_ce"])
def test_show_prints_what_load_resolves(recipe):
    overrides = {"train.epochs": "3", "objective.terms.dro": "on", "train.optim.milestones": "0.5,0.6"}
    shown = yaml.safe_load(show_run(recipe, overrides))
    assert shown == load_run(recipe, overrides).to_dict()
    assert RunConfig.from_dict(shown) == load_run(recipe, overrides)


def test_show_checks_names_and_types_with_the_same_words():
    for overrides in (
        {"train.optim.lr": "x"},
        {"objective.terms.dor.weight": "1"},
        {"seed": True},
        {"train.epochs": "nan"},
    ):
        with pytest.raises(ConfigError) as shown:
            show_run("cifar100_lt_ce", overrides)
        with pytest.raises(ConfigError) as loaded:
            load_run("cifar100_lt_ce", overrides)
        assert str(shown.value) == str(loaded.value)


def test_show_of_a_sweep_has_the_sweep_and_the_run():
    sweep, run = yaml.safe_load_all(show_sweep("tune_lpa", {"sweep.num_trials": "4", "train.epochs": "2"}))
    assert (sweep["num_trials"], sweep["space"]["objective.terms.lpa.weight"]) == (4, "log:0.1,3.0")
    assert run["train"]["epochs"] == 2 and run["objective"]["terms"]["lpa"]["num_attributes"] == 16


def test_show_flag_prints_and_exits(capsys):
    for read, argv in (
        (cli.read_train, ["cifar100_lt_ce", "--show"]),
        (cli.read_tune, ["--show", "--num-trials", "3"]),
    ):
        with pytest.raises(SystemExit) as caught:
            read("doc", argv)
        assert caught.value.code == 0
    assert "num_trials: 3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.read_train("doc", ["cifar100_lt_ce", "--show", "lr=1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: lr: unknown key.")


def test_show_and_help_import_neither_torch_nor_ray():
    code = """
import sys
from ltcore.cli import parsers as cli
for read, argv in ((cli.read_train, ["folder", "--show"]), (cli.read_tune, ["--show"]), (cli.read_tune, ["--help"])):
    try:
        read("doc", argv)
    except SystemExit as stop:
        assert stop.code == 0
print([m for m in ("torch", "numpy", "ray", "wandb", "pyarrow") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_file_beside_the_command_is_meant_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.safetensors").touch()
    (tmp_path / "run").mkdir()
    words = [
        "cifar100_lt_ce",
        "model.weights=net.safetensors",
        "train.init_from=run",
        "name=run",
        "stage2.from_run=other",
    ]
    assert cli.read_train("test", words).overrides == {
        "model.weights": str(tmp_path / "net.safetensors"),
        "train.init_from": str(tmp_path / "run"),
        "name": "run",
        "stage2.from_run": "other",
    }
    assert cli.read_train("test", ["cifar100_lt_ce", "model.weights=default"]).overrides == {"model.weights": "default"}


@pytest.mark.parametrize("how", ["flag", "key", "variable"])
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("photos", "{here}/photos"),
        ("./photos", "{here}/photos"),
        ("~/photos", "{here}/photos"),
        ("photos [2024]", "{here}/photos [2024]"),
        ("tars/{000..099}.tar", "{here}/tars/{{000..099}}.tar"),
        ("*.tar", "{here}/*.tar"),
        ("none/*.tar", "none/*.tar"),
        ("photo", "photo"),
        ("cifar100", "cifar100"),
        ("s3://bucket/photos", "s3://bucket/photos"),
        ("s3:/photos", "s3:/photos"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
        ("x" * 300, "x" * 300),
    ],
)
def test_data_mean_the_same_wherever_their_run_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, given: str, meant: str
) -> None:
    for name in ("photos", "photos [2024]", "tars", "cifar100", "default", "null"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LTCORE_DATA", raising=False)
    words = {"flag": ["--data", given], "key": [f"data.uri={given}"], "variable": []}[how]
    if how == "variable":
        monkeypatch.setenv("LTCORE_DATA", given)
    for read in (cli.read_train, cli.read_tune):
        found = read("test", ["folder", *words, "model.weights=default", "data.images=null"]).overrides
        assert found["data.uri"] == meant.format(here=tmp_path)
        assert (found["model.weights"], found["data.images"]) == ("default", "null")
