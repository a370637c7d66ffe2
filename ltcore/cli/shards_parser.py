"""The command line of ``shards``; it imports nothing that takes time, as ``parsers``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ltcore.cli.args import ShardsArgs
from ltcore.cli.parsers import command_parser
from ltcore.cli.values import count, pair
from ltcore.data.config import CLASSES_FROM
from ltcore.data.shards.reencode import FORMATS, QUALITY, Reencode
from ltcore.errors import ConfigError

ENGINES = ("auto", "inline", "ray")


def read_shards(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> ShardsArgs:
    """Reads the command line of ``shards``."""
    parser = command_parser(doc, prog)
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE|check|info|pictures",
        help="folder, zip, list, csv, tsv or parquet of images, tars, or a name under Data in `ltcore methods`",
    )
    add("target", metavar="OUT|URI", help="where the shards are or will be: folder, s3:// or gs://")
    add(
        "pictures_dir", nargs="?", metavar="DIR", help="folder for pictures (default: NAME-pictures); of pictures alone"
    )
    add(
        "--imbalance-factor",
        type=float,
        metavar="X",
        help="largest / smallest training class (default: images as they are)",
    )
    add(
        "--subset",
        default="auto",
        metavar="NAME",
        help="keyed, or legacy: the published one, CIFAR only (default: legacy of cifar10 and cifar100, else keyed)",
    )
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
        help="validation images per class of what brings none: of those that --imbalance-factor leaves out, else at most a "
        "fifth of each class (default 10)",
    )
    add("--images", metavar="DIR|ZIP", help="images of a benchmark that is named (cifar100-glt, mnist-glt, mscoco-glt)")
    add("--annotations", metavar="DIR", help="annotation files of a benchmark that is named (mscoco-glt)")
    add("--shard-size", type=int, default=1000, metavar="N", help="most images in one tar (default 1000)")
    add_source_flags(parser)
    args = vars(parser.parse_args(argv))
    given = {name for name, value in args.items() if value != parser.get_default(name)}
    if unread := sorted(given & _without_effect(args)):
        flag = unread[0].replace("_", "-")
        parser.error(f"--{flag} is about shards that are made, which {args['source']} does not do")
    reencode = reencode_of(args)
    if args["pictures_dir"] is not None and args["source"] != "pictures":
        parser.error(f"{args['pictures_dir']!r} is one argument too many: only pictures takes a folder after the data")
    return ShardsArgs(lists=args.pop("list"), reencode=reencode, **args)


def _without_effect(args: dict[str, Any]) -> set[str]:
    """Returns the options that what is done does not read."""
    if args["source"] in ("check", "info"):
        return args.keys() - {"source", "target", "pictures_dir", "debug"}
    return {"reencode", "quality", "short_side", "shard_size"} if args["source"] == "pictures" else set()


def reencode_of(args: dict[str, Any]) -> Reencode | None:
    """Takes out of the arguments how images are encoded anew. Raises ConfigError for values that do not go together."""
    found = {key: args.pop(key) for key in ("reencode", "quality", "short_side")}
    kind = found.pop("reencode")
    given = {key: value for key, value in found.items() if value is not None}
    if kind is None:
        if given:
            raise ConfigError(
                f"--{next(iter(given)).replace('_', '-')} is about images that are encoded anew; give --reencode."
            )
        return None
    try:
        return Reencode(format=kind, **given)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how a source is read, and by what."""
    add = parser.add_argument
    add("--engine", choices=ENGINES, default="auto", help="this process, Ray tasks, or Ray where there is much to do")
    add("--classes-from", choices=CLASSES_FROM, help="class in nested folders: the first level (depth) or all (path)")
    add(
        "--max-bad-samples",
        type=int,
        default=0,
        metavar="N",
        help="most broken images that are left out instead of an error (default 0)",
    )
    add("--reencode", choices=FORMATS, help="write images anew in this format (default: the files as they are)")
    add("--quality", type=count, metavar="N", help=f"of --reencode jpg and webp, 1 to 100 (default {QUALITY})")
    add("--short-side", type=count, metavar="PX", help="with --reencode: scale images down to this shorter side")
    add("--list", action="append", default=[], type=pair, metavar="SPLIT=FILE", help="list, table or json; repeatable")
    for role, what in (
        ("image", "paths, or images"),
        ("label", "classes"),
        ("split", "train, val or test"),
        ("attribute", "a second property"),
    ):
        add(f"--{role}-column", metavar="NAME", help=f"column of a table with {what} (default: by its name)")
    add("--label-key", metavar="KEY", help="where tars of others have the label in their .json (dotted; default: .cls)")
