"""The command lines, one function each. Reading one imports neither torch nor Ray, so help is shown at once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ltcore.benchmarks.options import BENCHES, Options
from ltcore.cli.args import (
    DEMO_RECIPE,
    DEMO_SWEEP,
    DoctorArgs,
    EvaluateArgs,
    ProtocolsArgs,
    ReportArgs,
    TrainArgs,
    TuneArgs,
    absolute,
    check_reading,
    fold,
)
from ltcore.cli.parser import Parser
from ltcore.cli.plugin_flag import add_plugin_flag
from ltcore.cli.values import comma_separated, count, gpu_part, not_negative, positive, whole, worker_range
from ltcore.config.execution import ENGINES
from ltcore.errors import ConfigError, LtcoreError
from ltcore.evaluation.protocols import PROTOCOLS
from ltcore.text import message, printable_lines


def read_train(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> TrainArgs:
    """Reads the command line of ``train``; ``--show`` prints the resolved configuration and exits."""
    parser = command_parser(doc, prog)
    help_words = "recipe (default: folder or folder_small, by the size of the images) and overrides"
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help=help_words)
    parser.add_argument(
        "--name", help="name of the run (default: recipe, data, changed keys, seed); one that exists continues"
    )
    _add_run_flags(parser)
    _add_place_flags(parser)
    args = parser.parse_intermixed_args(argv)
    recipe, overrides = split_words(parser, args.words)
    _fold(parser, overrides, {"name": args.name, "seed": args.seed, "data.uri": args.data})
    if recipe is None and "data.uri" not in overrides:
        parser.error(
            "which recipe, or which data? `ltcore recipes` lists the recipes; --data FOLDER alone trains on your images; "
            f"the recipe {DEMO_RECIPE} is a demonstration that needs no data"
        )
    if args.show:
        _print_and_exit(lambda: _shown_run(recipe, overrides, args.storage))
    return TrainArgs(recipe=recipe or "", overrides=overrides, **_place(args))


def read_tune(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> TuneArgs:
    """Reads the command line of ``tune``; ``--show`` prints sweep and resolved configuration and exits."""
    parser = command_parser(doc, prog)
    help_words = "recipe (default: the sweep's; of tune_lpa with data by the size of the images) and overrides"
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help=help_words)
    parser.add_argument("--sweep", default=DEMO_SWEEP, metavar="NAME|FILE", help="sweep file (default: %(default)s)")
    parser.add_argument(
        "--name", help="name of the sweep (default: file, data, changed keys, seed); one that exists continues"
    )
    parser.add_argument("--num-trials", type=count, metavar="N", help="number of trials")
    parser.add_argument("--search", choices=("random", "grid", "tpe", "pbt"), help="search algorithm")
    parser.add_argument(
        "--stall-s", type=positive, metavar="S", help="seconds of silence after which a run is started again"
    )
    parser.add_argument("--max-hours", type=positive, metavar="H", help="most hours for the whole sweep")
    _add_run_flags(parser)
    _add_place_flags(parser, shares_gpus=True)
    args = parser.parse_intermixed_args(argv)
    recipe, overrides = split_words(parser, args.words)
    folded = {"recipe": recipe, "name": args.name, "num_trials": args.num_trials, "search": args.search}
    folded |= {"stall_s": args.stall_s}
    _fold(parser, overrides, {"seed": args.seed, "data.uri": args.data, **{f"sweep.{k}": v for k, v in folded.items()}})
    if args.show:
        _print_and_exit(lambda: _shown_sweep(args.sweep, overrides, args.storage))
    return TuneArgs(sweep=args.sweep, overrides=overrides, max_hours=args.max_hours, **_place(args))


def read_evaluate(
    doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None
) -> EvaluateArgs | ProtocolsArgs:
    """Reads the command line of ``evaluate``: of one checkpoint, or with ``--protocols`` of runs."""
    parser = command_parser(doc, prog)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint or run directory, path or URI")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="predict these instead of measuring: image files, folders, zips, shards, or lists (.txt: a line 'path' or "
        "'path label' for each image, the label a class of the run or its number by their order); with --protocols more runs; "
        "or data.KEY=VALUE that says how --data is read, such as data.label_column=species",
    )
    parser.add_argument("--data", metavar="URI", help="data to evaluate on (default: LTCORE_DATA, else training's)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", action="append", default=[], metavar="NAME", help="split to evaluate; repeatable")
    which.add_argument("--protocol", action="append", default=[], choices=PROTOCOLS, help="GLT protocol; repeatable")
    which.add_argument(
        "--protocols",
        action="store_true",
        dest="compare",
        help="CLT, ALT and GLT side by side, from runs on train and on train_cbl that are else the same, of one or more seeds; "
        "those that are not given are looked for beside them",
    )
    parser.add_argument(
        "--train-missing", action="store_true", help="with --protocols: train (or continue) the runs that are not there"
    )
    add_prediction_flags(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="FILE.json: all metrics in one file (default: metrics/ of the run or checkpoint, a file for each data set and "
        "split); FILE.parquet, .csv or .jsonl: predictions, a row for each image of IMAGES, or of --data; with --protocols "
        ".json or .csv, the table",
    )
    parser.add_argument("--top-k", type=count, default=1, metavar="K", help="classes of each prediction (default: 1)")
    parser.add_argument("--logits", action="store_true", help="predictions with logits, as .parquet or .jsonl")
    parser.add_argument(
        "--engine", choices=("inline", "ray"), default="inline", help="ray: predict shards with a pool of Ray actors"
    )
    args = parser.parse_intermixed_args(argv)
    if args.compare:
        return _protocols(parser, args)
    if args.train_missing:
        parser.error("--train-missing goes with --protocols")
    reading = take_reading(parser, args)
    if args.images and (args.data or reading):
        parser.error("IMAGES are predicted as they are, --data is a data set with splits; give one of the two")
    found = EvaluateArgs(
        checkpoint=args.checkpoint,
        images=tuple(args.images),
        data=args.data or os.environ.get("LTCORE_DATA"),
        splits=tuple(args.split),
        protocols=tuple(args.protocol),
        posthoc_tau=args.posthoc_tau,
        output=args.output,
        debug=args.debug,
        tta=args.tta,
        top_k=args.top_k,
        logits=args.logits,
        engine=args.engine,
        reading=reading,
    )
    if problem := found.contradiction():
        parser.error(problem)
    return found


def take_reading(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """Takes the words that say how ``--data`` is read out of the images, and returns their keys and values."""
    words = [word for word in args.images if re.match(r"data\.\w+=", word)]
    args.images = [word for word in args.images if word not in words]
    found = dict(word.split("=", 1) for word in words)
    if len(found) < len(set(words)):
        parser.error(f"a key is given twice: {' '.join(words)}")
    try:
        check_reading(found)
    except ConfigError as error:
        parser.error(str(error))
    if found and not (args.data or os.environ.get("LTCORE_DATA")):
        parser.error(f"{words[0]} says how the data of --data are read: give them")
    return found


def _protocols(parser: argparse.ArgumentParser, args: argparse.Namespace) -> ProtocolsArgs:
    if args.top_k > 1 or args.logits or args.engine == "ray":
        parser.error("--top-k, --logits and --engine ray are of predictions, which --protocols does not make")
    if odd := next((word for word in args.images if re.match(r"data\.\w+=", word)), None):
        parser.error(f"{odd} does not go with --protocols, which takes runs: make shards of the data, and give those")
    if args.output and not args.output.endswith((".json", ".csv")):
        parser.error(f"--output {args.output}: expected the ending .json or .csv for the table of --protocols")
    return ProtocolsArgs(
        runs=(args.checkpoint, *args.images),
        data=args.data or os.environ.get("LTCORE_DATA"),
        train_missing=args.train_missing,
        posthoc_tau=args.posthoc_tau,
        tta=args.tta,
        output=args.output,
        debug=args.debug,
    )


def read_report(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> ReportArgs:
    """Reads the command line of ``report``."""
    parser = command_parser(doc, prog)
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path, help="a sweep directory or run directories")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the page goes (default: into the directory)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table of results instead of a page")
    parser.add_argument(
        "--rows", metavar="NAME,...", type=comma_separated, default=(), help="variants in that table, in this order"
    )
    parser.add_argument(
        "--columns", metavar="TITLE,...", type=comma_separated, default=(), help="its columns beside their names"
    )
    args = parser.parse_args(argv)
    if args.markdown and args.output:
        parser.error("--markdown prints a table: redirect it into a file instead of --output")
    if (args.rows or args.columns) and not args.markdown:
        parser.error("--rows and --columns choose from the table of --markdown")
    return ReportArgs(
        directories=args.directories,
        output=args.output,
        markdown=args.markdown,
        rows=args.rows,
        columns=args.columns,
    )


def read_bench(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> Options:
    """Reads the command line of ``bench``."""
    parser = command_parser(doc, prog)
    add = parser.add_argument
    add("what", nargs="?", default="ladder", choices=(*BENCHES, "all"), help="what to measure (default: ladder)")
    add("--data", metavar="URI", help="shards, image folder or zip for ladder and large (default: generated images)")
    add("--rounds", type=count, default=5, metavar="N", help="measured rounds of every side (default: 5)")
    add(
        "--only",
        default="",
        metavar="TEXT",
        help="gpu: networks and precisions with that in their name, such as 'px bf16'",
    )
    add("--trials", action="store_true", help="scale: also start up to 100 trials in a real Ray, which takes minutes")
    add("--quick", action="store_true", help="small sizes, one round: shows that it runs, says nothing about speed")
    add("--output", default="bench.json", metavar="FILE", help="all measurements as JSON (default: bench.json)")
    args = parser.parse_args(argv)
    if args.trials and args.what != "scale":
        parser.error(f"--trials goes with scale, not with {args.what}: give bench scale --trials")
    if args.only and args.what != "gpu":
        parser.error(f"--only goes with gpu, not with {args.what}: give bench gpu --only TEXT")
    kept = ("what", "data", "rounds", "trials", "only", "quick", "output")
    return Options(**{name: getattr(args, name) for name in kept})


def read_doctor(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> DoctorArgs:
    """Reads the command line of ``doctor``."""
    parser = command_parser(doc, prog)
    parser.add_argument("--storage", metavar="URI", help="where results go (default: LTCORE_STORAGE)")
    parser.add_argument("--data", metavar="URI", help="shards that must be reachable (default: LTCORE_DATA)")
    parser.add_argument("--max-gpus", type=not_negative, metavar="N", help="most GPUs that a sweep may hold together")
    args = parser.parse_args(argv)
    return DoctorArgs(storage=args.storage, data=args.data, max_gpus=args.max_gpus)


def read_keys(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> str | None:
    """Reads the pattern that ``keys`` looks for; None lists all."""
    parser = command_parser(doc, prog)
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a key, or a pattern with *")
    pattern: str | None = parser.parse_args(argv).pattern
    return pattern


def read_show(
    doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[str, dict[str, str]]:
    """Reads recipe and overrides of ``show``."""
    parser = command_parser(doc, prog)
    parser.add_argument("words", nargs="+", metavar="RECIPE key=value", help="recipe and overrides")
    recipe, overrides = split_words(parser, parser.parse_args(argv).words)
    if recipe is None:
        parser.error("which recipe? (ltcore recipes)")
    return recipe, overrides


def read_schema(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> bool:
    """Reads the command line of ``schema``. Returns whether that of sweep files is asked for."""
    how = (
        "Keep it beside your recipes, and name it in the first line of each, for editors with yaml-language-server:\n"
        "  ltcore schema > recipe.schema.json\n"
        "  # yaml-language-server: $schema=recipe.schema.json"
    )
    parser = command_parser(f"{doc}\n\n{how}" if doc else how, prog)
    parser.add_argument("--sweep", action="store_true", help="the schema of sweep files")
    of_sweep: bool = parser.parse_args(argv).sweep
    return of_sweep


def read_completion(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads the shell, or the words so far, which its script asks about."""
    how = "Once: source <(ltcore completion bash), or into the shell's start-up file; fish: ltcore completion fish | source"
    parser = command_parser(f"{doc}\n\n{how}" if doc else how, prog)
    parser.add_argument(
        "shell", nargs="?", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish", help="which shell"
    )
    parser.add_argument("--words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.shell is None) == (args.words is None):
        parser.error("which shell? bash, zsh or fish")
    return args


def read_check(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> str | None:
    """Reads the plugin that ``check`` examines; None: the source checkout."""
    parser = command_parser(doc, prog)
    parser.add_argument(
        "module", nargs="?", metavar="MODULE", help="plugin whose parts are checked, such as my_package.my_terms"
    )
    module: str | None = parser.parse_args(argv).module
    return module


def read_nothing(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Reads the command line of a command that takes no arguments, and refuses any."""
    command_parser(doc, prog).parse_args(argv)


def command_parser(doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of a command, with what all commands take."""
    parser = Parser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the logs of libraries")
    add_plugin_flag(parser)
    return parser


def add_prediction_flags(parser: argparse.ArgumentParser, tta: Sequence[str] = ("none", "flip", "five_crop")) -> None:
    """Adds what changes the logits of a trained classifier; ``tta`` is what the command can do."""
    parser.add_argument(
        "--posthoc-tau",
        type=not_negative,
        default=0.0,
        metavar="TAU",
        help="predict with logits less TAU times the log class prior of training (1: for a balanced test)",
    )
    crops = ", or of four corners and center of a larger copy (LIFT)" if "five_crop" in tta else ""
    parser.add_argument("--tta", choices=tta, default="none", help=f"mean logits of image and mirror image{crops}")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="URI",
        help="shards, images (folder, zip, list, table, parquet, tars), or source (default: LTCORE_DATA)",
    )
    parser.add_argument("--seed", type=whole, metavar="N", help="seed of the run, or of the sweep and its runs")


def _add_place_flags(parser: argparse.ArgumentParser, *, shares_gpus: bool = False) -> None:
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="where runs are computed (default: auto)")
    parser.add_argument(
        "--workers",
        type=worker_range,
        metavar="N|MIN-MAX",
        help="Ray Train workers of a run; each number of a range has to divide batch size and lanes",
    )
    parser.add_argument("--cpus-per-worker", type=positive, metavar="N", help="CPUs that each worker takes of Ray")
    parser.add_argument(
        "--gpus-per-worker",
        type=gpu_part if shares_gpus else not_negative,
        metavar="N|auto" if shares_gpus else "N",
        help="GPUs of each worker, or a part of one"
        + "; auto measures how many trials can share one (default with one worker per trial)" * shares_gpus,
    )
    parser.add_argument("--max-gpus", type=not_negative, metavar="N", help="most GPUs that all runs may hold together")
    parser.add_argument("--storage", metavar="URI", help="where run directories go (default: LTCORE_STORAGE)")
    parser.add_argument("--fresh", action="store_true", help="start anew, whatever is stored under this name")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the configuration, prepare the data, say what it would cost; train nothing",
    )


def _place(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "engine": args.engine,
        "workers": args.workers,
        "cpus_per_worker": args.cpus_per_worker,
        "gpus_per_worker": args.gpus_per_worker,
        "max_gpus": args.max_gpus,
        "storage": args.storage or os.environ.get("LTCORE_STORAGE"),
        "fresh": args.fresh,
        "dry_run": args.dry_run,
        "debug": args.debug,
    }


def split_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Splits words in any order into (recipe or None, overrides)."""
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        parser.error(f"one recipe expected, got {' and '.join(recipes)} (overrides are written key=value)")
    overrides: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        value = absolute(key, value)
        if equals and overrides.setdefault(key, value) != value:
            parser.error(f"{key} is given twice: {overrides[key]} and {value}")
    return (recipes[0] if recipes else None), overrides


def _fold(parser: argparse.ArgumentParser, overrides: dict[str, str], flags: dict[str, object]) -> None:
    try:
        fold(overrides, flags)
    except ConfigError as error:
        parser.error(str(error))


def _shown_run(recipe: str | None, overrides: dict[str, str], storage: str | None) -> str:
    from ltcore.config.naming import name_run
    from ltcore.config.show import show_run

    if recipe is None:
        from ltcore.cli.default_recipe import recipe_for
        from ltcore.cli.entry import say

        recipe = recipe_for(overrides, storage or os.environ.get("LTCORE_STORAGE"), say)
    return show_run(recipe, name_run(recipe, overrides))


def _shown_sweep(sweep: str, overrides: dict[str, str], storage: str | None) -> str:
    from ltcore.cli.default_recipe import with_recipe
    from ltcore.cli.entry import say
    from ltcore.config.naming import name_sweep
    from ltcore.config.show import show_sweep

    overrides = with_recipe(sweep, overrides, storage or os.environ.get("LTCORE_STORAGE"), say)
    return show_sweep(sweep, name_sweep(sweep, overrides))


def _print_and_exit(text: Callable[[], str]) -> NoReturn:
    try:
        print(printable_lines(text()))
    except LtcoreError as error:
        print(message(f"error: {error}"), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(0)
