"""The command line of ``shards glt``; it imports nothing that takes time, as ``parsers``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ltcore.cli.args import GltArgs, absolute
from ltcore.cli.parsers import command_parser
from ltcore.cli.shards_parser import add_source_flags, reencode_of
from ltcore.cli.values import at_least_one, comma_separated, count, whole
from ltcore.data.glt.choices import FIT, PROFILES, RANDOM, SHORTAGES, Discovery, GltChoices
from ltcore.errors import ConfigError

DOC = """Build a generalized long-tailed benchmark from images: a long tail over classes, and one over attributes in each class.

ltcore shards glt photos OUT --attributes attributes.csv    a file says the attribute of each image
ltcore shards glt photos OUT --attributes-from 2            <class>/<attribute>/<image>
ltcore shards glt photos OUT --discover random              attributes are clusters inside each class

Classes may have attributes of their own, as breeds of cats and of dogs, two or more each: their ranks in the class count.
"""


def read_shards_glt(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> GltArgs:
    """Reads the command line of ``shards glt``."""
    parser = command_parser(doc, prog)
    parser.add_argument("source", metavar="SOURCE", help="images as for `ltcore shards`, or finished shards")
    parser.add_argument("target", metavar="OUT", help="where the shards will be: folder, s3:// or gs://")
    _add_attributes(parser)
    _add_sizes(parser)
    add = parser.add_argument
    add(
        "--pool",
        type=comma_separated,
        default=(),
        metavar="SPLIT,...",
        help="splits whose images are used (default: train, or all)",
    )
    add("--seed", type=whole, default=0, metavar="N", help="of selection, clusters and order (default 0)")
    add("--shard-size", type=count, default=1000, metavar="N", help="most images in one tar (default 1000)")
    add_source_flags(parser)
    args = vars(parser.parse_args(argv))
    try:
        choices = GltChoices(
            discovery=_discovery(args),
            reencode=reencode_of(args),
            **_profile(args),
            **{key: args.pop(key) for key in _CHOICES},
        )
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    return GltArgs(choices=choices, lists=args.pop("list"), **args)


_CHOICES = (
    *(
        "attributes_file",
        "attribute_level",
        "pool",
        "class_counts",
        "largest",
        "quotas",
        "shortage",
    ),
    *("train_cbl", "val", "val_glt", "test", "test_glt", "seed", "shard_size"),
)


def _profile(args: dict[str, Any]) -> dict[str, Any]:
    """Takes out of the arguments how class sizes fall. Raises ConfigError where they are given themselves."""
    found = {key: args.pop(key) for key in ("profile", "imbalance_factor")}
    given = {key: value for key, value in found.items() if value is not None}
    if given and args["class_counts"]:
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} has no effect beside --class-counts, which say how class sizes fall. "
            "Leave one of them out."
        )
    return given


def _discovery(args: dict[str, Any]) -> Discovery | None:
    found = {key: args.pop(key) for key in ("features", "weights", "groups", "clusters", "image_size")}
    given = {key: value for key, value in found.items() if value is not None}
    if "weights" in given:
        given["weights"] = absolute("model.weights", given["weights"])
    if "features" in given:
        return Discovery(**given)  # argparse checked them
    if given:
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} is about attributes that are discovered; give --discover."
        )
    return None


def _add_attributes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("attributes", "by default those of SOURCE: a column, or those of shards")
    add = group.add_argument
    add(
        "--attributes",
        dest="attributes_file",
        metavar="FILE",
        help="list of 'path attribute', csv or tsv with a column attribute, or json {path: attribute}",
    )
    add(
        "--attributes-from",
        dest="attribute_level",
        type=count,
        metavar="LEVEL",
        help="folder level that is the attribute, from 1; the others are the class",
    )
    add(
        "--discover",
        dest="features",
        metavar="FEATURES",
        help=f"clusters inside each class, of: {RANDOM} (projections of pixels), a run or checkpoint, or a pretrained backbone "
        "(resnet50, timm:NAME)",
    )
    add("--weights", metavar="FILE", help="of the backbone (default: the published ones in torch's hub cache)")
    add("--groups", type=count, metavar="N", help="attributes to discover in each class (default 3)")
    add("--clusters", type=count, metavar="N", help="k-means clusters that are merged to groups (default 6)")
    add(
        "--image-size",
        type=count,
        metavar="PX",
        help="side of the images for features (default: what they are used to)",
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sizes", "what is not given follows from the rarest attribute of any class")
    add = group.add_argument
    add("--profile", choices=sorted(PROFILES), help="class sizes by rank (default exponential)")
    add(
        "--imbalance-factor",
        type=at_least_one,
        metavar="X",
        help="largest / smallest training class (default 100)",
    )
    add(
        "--class-counts",
        type=_falling,
        default=(),
        metavar="N,...|FILE",
        help="training images by class rank, instead of a profile; a file has one number a line",
    )
    add(
        "--max-class",
        dest="largest",
        type=_size,
        metavar=f"N|{FIT}",
        help=f"images of the largest class (default {FIT})",
    )
    add(
        "--quotas",
        type=_numbers,
        default=(),
        metavar="N,...",
        help="of attributes by rank in their class (default by the fewest of a class: 7,2,1; of two 7,3; of five 10,5,3,1,1)",
    )
    add(
        "--shortage",
        choices=SHORTAGES,
        default="refuse",
        help="where a class has fewer images of an attribute than that: refuse (default), or cap: it gives what it has, at most "
        "about half of the attribute to tests and val",
    )
    add("--train-cbl", type=count, metavar="N", help="images per class of train_cbl (default: the mean class of train)")
    add("--val-per-class", dest="val", type=count, metavar="N", help="balanced over attributes (default: half a test)")
    add(
        "--val-glt",
        type=whole,
        default=0,
        metavar="N",
        help="images of a validation that is distributed as train, as in ImageNet-GLT, in place of the balanced one",
    )
    add(
        "--test-per-class",
        dest="test",
        type=count,
        metavar="N",
        help="of test_cbl and test_gbl each (default: 20 per attribute, or what leaves half to training)",
    )
    add(
        "--test-glt",
        type=whole,
        default=0,
        metavar="N",
        help="images of a third test, distributed as train (default none)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(count(word) for word in text.split(","))


def _falling(text: str) -> tuple[int, ...]:
    """Reads numbers, or a file of them, in any order, and returns the largest first."""
    if text.replace(",", "").isdecimal():
        return tuple(sorted(_numbers(text), reverse=True))
    try:
        with open(text, encoding="utf-8") as file:  # noqa: PTH123 - a word of the command line
            return tuple(sorted((count(line.strip()) for line in file if line.strip()), reverse=True))
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected numbers as 500,300,100 or a file of them, got {text} ({error})"
        ) from error


def _size(text: str) -> int | str:
    return text if text == FIT else count(text)
