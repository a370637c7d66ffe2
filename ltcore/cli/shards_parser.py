"""The command line of ``shards``; it imports nothing that takes time, as ``parsers``."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore.cli.args import ShardsArgs
from ltcore.cli.parsers import command_parser
from ltcore.cli.values import pair
from ltcore.data.config import CLASSES_FROM


def read_shards(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> ShardsArgs:
    """Reads the command line of ``shards``."""
    parser = command_parser(doc, prog)
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
    add("--list", action="append", default=[], type=pair, metavar="SPLIT=FILE", help="list or table; repeatable")
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
