"""The command lines of the pipelines. Reading one imports neither torch nor Ray: ``--help`` and ``--show`` are instant.

Grammar: words, flags and ``key=value`` overrides in any order. ``ray submit`` joins arguments without quoting, so no
part of the grammar needs a blank, a bracket or a quote: lists are ``a,b,c``, ranges ``log:0.02,1``, off is ``null``.

What a flag says about the run itself is folded into ``overrides`` (``--data`` is ``data.uri=``, ``--seed`` is
``seed=``), so there is one way for a value to reach a run; the other fields say where and how it is computed.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from ltcore.config.execution import ENGINES, PlaceArgs
from ltcore.errors import ConfigError, LtcoreError, refuse_userinfo
from ltcore.text import message, printable_lines

PROTOCOLS = ("clt", "alt", "glt")
DEMO_RECIPE = "digits_glt_lpa_dro_ifl"
DEMO_SWEEP = "tune_lpa"

N = TypeVar("N", int, float)


@dataclass(frozen=True, kw_only=True)
class TrainArgs(PlaceArgs):
    """``train.py``"""

    recipe: str
    overrides: dict[str, str]
    """Dotted keys of the run, those given as flags included."""


@dataclass(frozen=True, kw_only=True)
class TuneArgs(PlaceArgs):
    """``tune_lpa.py``"""

    sweep: str
    overrides: dict[str, str]
    """For ``load_sweep``: dotted keys of every run, and ``sweep.`` keys, those given as flags included."""
    max_hours: float | None
    """Most hours that the sweep may take."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """``evaluate.py``"""

    checkpoint: str
    """A checkpoint or run directory, or its URI."""
    images: tuple[str, ...]
    """Image files to predict; empty: evaluate."""
    data: str | None
    """URI of the data to evaluate on; None: what the checkpoint was trained on."""
    splits: tuple[str, ...]
    """Splits by name; empty: those of ``protocols``."""
    protocols: tuple[str, ...]
    """Any of 'clt', 'alt', 'glt'; empty, with empty ``splits``: every test split."""
    posthoc_tau: float
    """Strength of post-hoc logit adjustment; 0 is none."""
    output: str | None
    """File for all metrics as JSON; None: one file for each data set and split in metrics/ of the run or checkpoint."""
    debug: bool


def read_train(doc: str | None, argv: Sequence[str] | None = None) -> TrainArgs:
    """The command line of ``train.py``. ``--show`` prints the resolved configuration and exits."""
    parser = _parser(doc)
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


def read_tune(doc: str | None, argv: Sequence[str] | None = None) -> TuneArgs:
    """The command line of ``tune_lpa.py``. ``--show`` prints sweep and resolved configuration and exits."""
    parser = _parser(doc)
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


def read_evaluate(doc: str | None, argv: Sequence[str] | None = None) -> EvaluateArgs:
    """The command line of ``evaluate.py``."""
    parser = _parser(doc)
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


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Runs a pipeline and exits: errors are one sentence on stderr, with a traceback only under ``--debug``."""
    try:
        _refuse_passwords(sys.argv[1:])
        code = main() or 0
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues where it stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever read the output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if isinstance(error, LtcoreError):
            print(message(f"error: {error}"), file=sys.stderr)
            code = error.exit_code
        else:
            said = f"error: unexpected {type(error).__name__}: {error}; run again with --debug"
            print(message(said), file=sys.stderr)
            code = 1
    if sys._getframe(1).f_globals.get("__name__") == "__main__":
        _leave(code)
    raise SystemExit(code)


def _refuse_passwords(argv: Sequence[str]) -> None:
    """Refuses URIs with a password wherever they stand: parsers repeat what they do not take, and W&B keeps the command."""
    for before, word in zip(["", *argv], argv, strict=False):
        key, _, _ = word.partition("=")
        flag = before if before.startswith("--") else "an argument"
        try:
            refuse_userinfo(**{flag if "://" in key else key: word})
        except ValueError as error:
            raise ConfigError(f"{error}.") from None


def _leave(code: int) -> NoReturn:
    """Ends the process as the interpreter does, but for the destructors of C++ libraries: after an error their threads may
    still run, and the process would now and then abort (exit code -6) with all its work done."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the logs of libraries")
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="URI", help="shards, image folder or zip, or source (default: LTCORE_DATA)")
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
    """(recipe or None, overrides) out of words in any order."""
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
    """Flags become overrides. LTCORE_DATA comes last: it replaces the recipe's data, nothing that was typed."""
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
