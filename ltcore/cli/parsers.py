"""The command lines, one function each. Reading one imports neither torch nor Ray, so help is shown at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ltcore.benchmarks.options import BENCHES, Options
from ltcore.cli.args import DoctorArgs, EvaluateArgs, ReportArgs, ShardsArgs, TrainArgs, TuneArgs
from ltcore.config.execution import ENGINES
from ltcore.data.config import CLASSES_FROM
from ltcore.errors import LtcoreError
from ltcore.evaluation.protocols import PROTOCOLS
from ltcore.text import message, printable_lines

DEMO_RECIPE = "digits_glt_lpa_dro_ifl"
DEMO_SWEEP = "tune_lpa"
N = TypeVar("N", int, float)


def read_train(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> TrainArgs:
    """Reads the command line of ``train``; ``--show`` prints the resolved configuration and exits."""
    parser = _parser(doc, prog)
    help_words = f"recipe (default: {DEMO_RECIPE}) and overrides"
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help=help_words)
    parser.add_argument(
        "--name", help="name of the run (default: recipe, data, changed keys, seed); one that exists continues"
    )
    _add_run_flags(parser)
    _add_place_flags(parser)
    args = parser.parse_intermixed_args(argv)
    recipe, overrides = split_words(parser, args.words)
    _fold(parser, overrides, {"name": args.name, "seed": args.seed, "data.uri": args.data})
    recipe = recipe or DEMO_RECIPE
    if args.show:
        from ltcore.config.naming import name_run
        from ltcore.config.show import show_run

        _print_and_exit(lambda: show_run(recipe, name_run(recipe, overrides)))
    return TrainArgs(recipe=recipe, overrides=overrides, **_place(args))


def read_tune(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> TuneArgs:
    """Reads the command line of ``tune``; ``--show`` prints sweep and resolved configuration and exits."""
    parser = _parser(doc, prog)
    help_words = "recipe (default: the sweep's) and overrides"
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help=help_words)
    parser.add_argument("--sweep", default=DEMO_SWEEP, metavar="NAME|FILE", help="sweep file (default: %(default)s)")
    parser.add_argument(
        "--name", help="name of the sweep (default: file, data, changed keys, seed); one that exists continues"
    )
    parser.add_argument("--num-trials", type=_count, metavar="N", help="number of trials")
    parser.add_argument("--search", choices=("random", "grid", "tpe", "pbt"), help="search algorithm")
    parser.add_argument("--stall-s", type=_positive, metavar="S", help="seconds of silence after which it gives up")
    parser.add_argument("--max-hours", type=_positive, metavar="H", help="most hours for the whole sweep")
    _add_run_flags(parser)
    _add_place_flags(parser)
    args = parser.parse_intermixed_args(argv)
    recipe, overrides = split_words(parser, args.words)
    folded = {"recipe": recipe, "name": args.name, "num_trials": args.num_trials, "search": args.search}
    folded |= {"stall_s": args.stall_s}
    _fold(parser, overrides, {"seed": args.seed, "data.uri": args.data, **{f"sweep.{k}": v for k, v in folded.items()}})
    if args.show:
        from ltcore.config.naming import name_sweep
        from ltcore.config.show import show_sweep

        _print_and_exit(lambda: show_sweep(args.sweep, name_sweep(args.sweep, overrides)))
    return TuneArgs(sweep=args.sweep, overrides=overrides, max_hours=args.max_hours, **_place(args))


def read_evaluate(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> EvaluateArgs:
    """Reads the command line of ``evaluate``."""
    parser = _parser(doc, prog)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint or run directory, path or URI")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files to predict instead of evaluating")
    parser.add_argument("--data", metavar="URI", help="data to evaluate on (default: LTCORE_DATA, else training's)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", action="append", default=[], metavar="NAME", help="split to evaluate; repeatable")
    which.add_argument("--protocol", action="append", default=[], choices=PROTOCOLS, help="GLT protocol; repeatable")
    parser.add_argument(
        "--posthoc-tau",
        type=_not_negative,
        default=0.0,
        metavar="TAU",
        help="predict with logits less TAU times the log class prior of training (1: for a balanced test)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="all metrics as one JSON file (default: metrics/ of the run or checkpoint, a file for each data set and split)",
    )
    args = parser.parse_intermixed_args(argv)
    if args.images and (args.split or args.protocol):
        parser.error("--split and --protocol choose data to evaluate; leave them out when predicting images")
    if args.images and (args.data or args.output):
        parser.error("--data and --output are of an evaluation; predictions of images go to the standard output")
    return EvaluateArgs(
        checkpoint=args.checkpoint,
        images=tuple(args.images),
        data=args.data or os.environ.get("LTCORE_DATA"),
        splits=tuple(args.split),
        protocols=tuple(args.protocol),
        posthoc_tau=args.posthoc_tau,
        output=args.output,
        debug=args.debug,
    )


def read_report(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> ReportArgs:
    """Reads the command line of ``report``."""
    parser = _parser(doc, prog)
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path, help="a sweep directory or run directories")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the page goes (default: into the directory)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table of results instead of a page")
    args = parser.parse_args(argv)
    if args.markdown and args.output:
        parser.error("--markdown prints a table: redirect it into a file instead of --output")
    return ReportArgs(directories=args.directories, output=args.output, markdown=args.markdown)


def read_shards(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> ShardsArgs:
    """Reads the command line of ``shards``."""
    parser = _parser(doc, prog)
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE|check|info",
        help="folder, zip, list, csv, tsv or parquet of images, tars, or a name under Data in `ltcore methods`",
    )
    add("target", metavar="OUT|URI", help="where the shards are or will be: folder, s3:// or gs://")
    add(
        "--imbalance-factor",
        type=float,
        metavar="X",
        help="largest / smallest training class (default: images as they are)",
    )
    add("--subset", default="keyed", metavar="NAME", help="keyed (default), or legacy: the published one, CIFAR only")
    add(
        "--subset-seed",
        type=int,
        default=0,
        metavar="N",
        help="of the selection and of the order in the shards (default 0)",
    )
    add(
        "--val-per-class",
        type=int,
        default=10,
        metavar="N",
        help="from training images that are not used otherwise (default 10)",
    )
    add("--classes-from", choices=CLASSES_FROM, help="class in nested folders: the first level (depth) or all (path)")
    add(
        "--max-bad-samples",
        type=int,
        default=0,
        metavar="N",
        help="most broken images that are left out instead of an error (default 0)",
    )
    add("--shard-size", type=int, default=1000, metavar="N", help="most images in one tar (default 1000)")
    add("--list", action="append", default=[], type=_pair, metavar="SPLIT=FILE", help="list or table; repeatable")
    for role, what in (
        ("image", "paths, or images"),
        ("label", "classes"),
        ("split", "train, val or test"),
        ("attribute", "a second property"),
    ):
        add(f"--{role}-column", metavar="NAME", help=f"column of a table with {what} (default: by its name)")
    add("--label-key", metavar="KEY", help="where tars of others have the label in their .json (dotted; default: .cls)")
    args = vars(parser.parse_args(argv))
    del args["debug"]
    return ShardsArgs(lists=args.pop("list"), **args)


def read_bench(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> Options:
    """Reads the command line of ``bench``."""
    parser = _parser(doc, prog)
    add = parser.add_argument
    add("what", nargs="?", default="ladder", choices=(*BENCHES, "all"), help="what to measure (default: ladder)")
    add("--data", metavar="URI", help="shards, image folder or zip for ladder and large (default: generated images)")
    add("--rounds", type=_count, default=5, metavar="N", help="measured rounds of every side (default: 5)")
    add("--quick", action="store_true", help="small sizes, one round: shows that it runs, says nothing about speed")
    add("--output", default="bench.json", metavar="FILE", help="all measurements as JSON (default: bench.json)")
    args = parser.parse_args(argv)
    return Options(what=args.what, data=args.data, rounds=args.rounds, quick=args.quick, output=args.output)


def read_doctor(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> DoctorArgs:
    """Reads the command line of ``doctor``."""
    parser = _parser(doc, prog)
    parser.add_argument("--storage", metavar="URI", help="where results go (default: LTCORE_STORAGE)")
    parser.add_argument("--data", metavar="URI", help="shards that must be reachable (default: LTCORE_DATA)")
    parser.add_argument("--max-gpus", type=_not_negative, metavar="N", help="most GPUs that a sweep may hold together")
    args = parser.parse_args(argv)
    return DoctorArgs(storage=args.storage, data=args.data, max_gpus=args.max_gpus)


def read_keys(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> str | None:
    """Reads the pattern that ``keys`` looks for; None lists all."""
    parser = _parser(doc, prog)
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a key, or a pattern with *")
    pattern: str | None = parser.parse_args(argv).pattern
    return pattern


def read_show(
    doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[str, dict[str, str]]:
    """Reads recipe and overrides of ``show``."""
    parser = _parser(doc, prog)
    parser.add_argument("words", nargs="+", metavar="RECIPE key=value", help="recipe and overrides")
    recipe, overrides = split_words(parser, parser.parse_args(argv).words)
    if recipe is None:
        parser.error("which recipe? (ltcore recipes)")
    return recipe, overrides


def read_nothing(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Reads the command line of a command that takes no arguments, and refuses any."""
    _parser(doc, prog).parse_args(argv)


def _parser(doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the logs of libraries")
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="URI",
        help="shards, images (folder, zip, list, table, parquet, tars), or source (default: LTCORE_DATA)",
    )
    parser.add_argument("--seed", type=_whole, metavar="N", help="seed of the run, or of the sweep and its runs")


def _add_place_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="where runs are computed (default: auto)")
    parser.add_argument(
        "--workers",
        type=_range,
        metavar="N|MIN-MAX",
        help="Ray Train workers of a run; each number of a range has to divide batch size and lanes",
    )
    parser.add_argument("--cpus-per-worker", type=_positive, metavar="N", help="CPUs that each worker takes of Ray")
    parser.add_argument(
        "--gpus-per-worker", type=_not_negative, metavar="N", help="GPUs of each worker, or a part of one"
    )
    parser.add_argument("--max-gpus", type=_not_negative, metavar="N", help="most GPUs that all runs may hold together")
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
        if equals and overrides.setdefault(key, value) != value:
            parser.error(f"{key} is given twice: {overrides[key]} and {value}")
    return (recipes[0] if recipes else None), overrides


def _fold(parser: argparse.ArgumentParser, overrides: dict[str, str], flags: dict[str, object]) -> None:
    """Turns flags into overrides. LTCORE_DATA comes last: it replaces the recipe's data, but nothing that was typed."""
    for key, value in flags.items():
        if value is not None and overrides.setdefault(key, str(value)) != str(value):
            parser.error(f"{key} is given twice: {overrides[key]} and {value}")
    if data := os.environ.get("LTCORE_DATA"):
        overrides.setdefault("data.uri", data)


def _print_and_exit(text: Callable[[], str]) -> NoReturn:
    try:
        print(printable_lines(text()))
    except LtcoreError as error:
        print(message(f"error: {error}"), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(0)


def _whole(text: str) -> int:
    return _number(text, int, 0, "a whole number >= 0")


def _count(text: str) -> int:
    return _number(text, int, 1, "a whole number >= 1")


def _not_negative(text: str) -> float:
    return _number(text, float, 0.0, "a number >= 0")


def _positive(text: str) -> float:
    return _number(text, float, sys.float_info.min, "a number > 0")


def _range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    pair = (_count(low), _count(high) if dash else _count(low))
    if pair[0] > pair[1]:
        raise argparse.ArgumentTypeError(f"expected N or MIN-MAX, got {text}")
    return pair


def _number(text: str, kind: type[N], least: float, words: str) -> N:
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected {words}, got {text}")
    return value


def _pair(text: str) -> tuple[str, str]:
    split, equals, file = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected SPLIT=FILE, got {text}")
    return split, file
