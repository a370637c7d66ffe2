"""The commands of the console script ``ltcore``; the scripts in ``pipelines/`` are the first six of them, one each.

Every command takes the text of its help, its arguments and its name. It reads the command line before it imports what does
the work, so that ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Sequence

from ltcore.cli import export_parsers, glt_parser, parsers, shards_parser
from ltcore.cli.args import ProtocolsArgs
from ltcore.cli.plugin_flag import add_plugin_flag
from ltcore.text import printable, printable_lines
from ltcore.version import __version__

Argv = Sequence[str] | None
Command = Callable[[str | None, Argv, str | None], int | None]


def train(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Train one recipe, or continue it."""
    args = parsers.read_train(doc, argv, prog)
    from ltcore.cli import train as command

    command.train(args)


def tune(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Sweep any keys of a recipe, then retrain and test the winner; or compare methods (--sweep compare_methods)."""
    args = parsers.read_tune(doc, argv, prog)
    from ltcore.cli import tune as command

    command.tune(args)


def evaluate(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> int:
    """Evaluate a checkpoint, or runs under CLT, ALT and GLT, or predict images."""
    args = parsers.read_evaluate(doc, argv, prog)
    if isinstance(args, ProtocolsArgs):
        from ltcore.cli import protocols

        protocols.run(args)
        return 0
    if args.predicts:
        from ltcore.cli.predict import predict

        return predict(args)
    from ltcore.cli import evaluate as command

    command.run(args)
    return 0


def report(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Render a sweep, or runs side by side, as one HTML page or a table."""
    args = parsers.read_report(doc, argv, prog)
    from ltcore.cli.entry import say
    from ltcore.reporting.plugins_note import changed_plugins
    from ltcore.reporting.report import make_report, make_table

    for problem in changed_plugins(args.directories):
        say(f"note: {problem} The report needs none of it.")
    if not args.markdown:
        print(printable(str(make_report(args.directories, args.output))))
        return
    table, left_out = make_table(args.directories, args.rows, args.columns)
    print(table)
    for reason in left_out:
        print(f"left out {printable(reason)}", file=sys.stderr)


def shards(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> int:
    """Make shards from images, check, describe or draw shards, or build a GLT benchmark (`shards glt`)."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["glt"]:
        chosen = glt_parser.read_shards_glt(glt_parser.DOC, words[1:], prog and f"{prog} glt")
        from ltcore.cli.make_glt import make_glt

        return make_glt(chosen)
    args = shards_parser.read_shards(doc, argv, prog)
    from ltcore.cli.make_shards import make_shards

    return make_shards(args)


def bench(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Measure this machine, every number beside a peer in the same run."""
    options = parsers.read_bench(doc, argv, prog)
    from ltcore.benchmarks.run import bench as command

    command(options)


def doctor(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> int:
    """Examine this machine, or every node of its cluster: versions, GPUs, disk, storage, data, authentication."""
    args = parsers.read_doctor(doc, argv, prog)
    from ltcore.cli.doctor import run_doctor

    return run_doctor(args.storage, args.data, args.max_gpus)


def export(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Export a trained model as ONNX or for torch.export, checked against its checkpoint."""
    args = export_parsers.read_export(doc, argv, prog)
    from ltcore.cli.export import run_export

    run_export(args)


def card(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Write the model card of a run: classes, data, training, results, limitations."""
    args = export_parsers.read_card(doc, argv, prog)
    from ltcore.cli.export import run_card

    run_card(args)


def retrieve(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Show what a network sees: nearest images by attributes, patches of prototypes, classes that share parts."""
    args = export_parsers.read_retrieve(doc, argv, prog)
    from ltcore.cli.retrieve import run_retrieve

    run_retrieve(args)


def methods(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """List losses, terms, stage-2 methods and networks, with papers."""
    parsers.read_nothing(doc, argv, prog)
    from ltcore.cli.describe import print_methods

    print_methods()


def recipes(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """List the packaged recipes and sweeps."""
    parsers.read_nothing(doc, argv, prog)
    from ltcore.cli.describe import print_recipes

    print_recipes()


def keys(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """List configuration keys: type, default, meaning."""
    pattern = parsers.read_keys(doc, argv, prog)
    from ltcore.cli.describe import print_keys

    print_keys(pattern)


def show(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Print a recipe with all defaults, resolved."""
    recipe, overrides = parsers.read_show(doc, argv, prog)
    from ltcore.config.show import show_run  # imports pydantic, which the other commands do without

    print(printable_lines(show_run(recipe, overrides)))


def schema(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Print the JSON Schema of recipes or sweep files, by which editors complete and check them."""
    of_sweep = parsers.read_schema(doc, argv, prog)
    from ltcore.config.json_schema import recipe_schema, sweep_schema

    print(json.dumps(sweep_schema() if of_sweep else recipe_schema(), indent=1))


def completion(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Print a script that teaches a shell to complete commands, flags, recipes and keys."""
    args = parsers.read_completion(doc, argv, prog)
    from ltcore.cli.complete import candidates, script

    print("\n".join(candidates(args.words, COMMANDS)) if args.words is not None else script(args.shell))


def composition(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> None:
    """Print what goes with what, and why not."""
    parsers.read_nothing(doc, argv, prog)
    from ltcore.config.compatibility import markdown  # imports torch, to build the configurations

    print(markdown())


def check(doc: str | None = None, argv: Argv = None, prog: str | None = None) -> int:
    """Check the parts of a plugin against their contracts, or run linter, types and tests of a source checkout."""
    module = parsers.read_check(doc, argv, prog)
    from ltcore.cli import describe

    return describe.check() if module is None else describe.check_parts(module)


COMMANDS: dict[str, Command] = {
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "report": report,
    "shards": shards,
    "bench": bench,
    "doctor": doctor,
    "export": export,
    "card": card,
    "retrieve": retrieve,
    "methods": methods,
    "recipes": recipes,
    "keys": keys,
    "show": show,
    "schema": schema,
    "completion": completion,
    "composition": composition,
    "check": check,
}


def main() -> int:
    """Runs one command of ``COMMANDS`` and returns its exit code."""
    width = max(map(len, COMMANDS))
    lines = (f"{name:<{width}}  {_summary(command)}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "ltcore",
        description="Train and tune long-tailed image classifiers on Ray.",
        epilog="commands:\n" + textwrap.indent("\n".join(lines), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_plugin_flag(parser)
    parser.add_argument("--version", action="version", version=f"ltcore {__version__}")
    parser.add_argument(
        "command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of those below; COMMAND --help tells more"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    args = parser.parse_args()
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    command = COMMANDS[args.command]
    return command(_summary(command), args.arguments, f"ltcore {args.command}") or 0


def _summary(command: Command) -> str:
    return (command.__doc__ or "").strip()


def console_script() -> None:
    """Starts ``ltcore``; the generated script of that name knows only this function."""
    from ltcore.cli.entry import run_main

    run_main(main)
