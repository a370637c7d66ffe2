"""``retrieve``: what a network sees in images, as a page of nearest images, prototypes and classes. Needs no Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ltcore.cli.args import RetrieveArgs
from ltcore.cli.bar import progress
from ltcore.cli.evaluate import find_data, other_data
from ltcore.cli.output import COMMAND_LINE, Output
from ltcore.data.config import DataConfig
from ltcore.data.datasets.inputs import Inputs
from ltcore.data.datasets.prepare import prepare
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import ConfigError
from ltcore.evaluation.retrieval import Retrieval
from ltcore.models.registry import is_backbone
from ltcore.models.weights import DEFAULT
from ltcore.reporting.retrieve_page import write_retrieval
from ltcore.storage import is_local, join
from ltcore.text import printable
from ltcore.training.describer import Describer, open_backbone, open_describer
from ltcore.training.retrieve import Progress, retrieve, silent

MOST_IMAGES = 64
"""Queries of one page."""


def run_retrieve(args: RetrieveArgs) -> None:
    """Searches by pseudo-attributes and writes the page."""
    output = args.output or _default_output(args.run)
    with ExitStack() as bars:

        def advance(what: str, total: int) -> Callable[[int], None]:
            bars.close()  # that of the pass before
            return bars.enter_context(progress(what, total))

        found = searched(args, COMMAND_LINE, advance)
    _show(found)
    print(f"Page: {printable(str(write_retrieval(found, output)))}")


def searched(args: RetrieveArgs, out: Output, advance: Progress = silent) -> Retrieval:
    """Searches by pseudo-attributes; ``advance`` is that of ``training.retrieve``."""
    describer, uri = _opened(args, out)
    inputs = Inputs(args.images, describer.predictor.classes)
    for remark in inputs.remarks:
        out.say(remark)
    if len(inputs) > MOST_IMAGES:
        raise ConfigError(
            f"{len(inputs):,} images were given; a page shows at most {MOST_IMAGES}. Choose some of them."
        )
    return retrieve(describer, uri, list(inputs), neighbors=args.neighbors, prototypes=args.prototypes, advance=advance)


def _opened(args: RetrieveArgs, out: Output) -> tuple[Describer, str]:
    """Returns the network and the URI of the shards to search."""
    if not _is_backbone(args.run):
        if args.weights:
            raise ConfigError(f"--weights goes with the name of a backbone, and {args.run} is a run. Leave it out.")
        describer = open_describer(args.run)
        return describer, find_data(describer.predictor, args.data, out, "searching", reading=args.reading)
    if not args.data:
        raise ConfigError(f"{args.run} is the name of a backbone, which was trained on no data of yours: give --data.")
    data = other_data(DataConfig(), args.data, args.reading)
    out.say(f"searching {data.uri}")
    uri = prepare(data, progress=out.say)
    return open_backbone(args.run, args.weights or DEFAULT, data, read_manifest(uri)), uri


def _is_backbone(run: str) -> bool:
    return is_backbone(run) and not Path(run).exists()


def _default_output(run: str) -> str:
    if _is_backbone(run):
        return "retrieve.html"
    if not is_local(run):
        raise ConfigError(f"{run} is in an object store: say with --output FILE.html where the page goes.")
    return join(run, "retrieve.html")


def _show(found: Retrieval) -> None:
    """Prints where the prototypes come from, and what is most worth to know."""
    print(f"{found.origin}.")
    of_known = [query for query in found.queries if query.label is not None]
    if total := sum(len(query.neighbors) for query in of_known):
        same = sum(query.same_class for query in of_known)
        print(f"{same} of {total} nearest training images are of the query's class.")
    for pair in found.pairs[:3]:
        names = " and ".join(printable(found.classes[c]) for c in (pair.first, pair.second))
        print(f"{names} share parts (similarity {pair.similarity:.2f})")
