"""``make_shards.py``: from the command line's answers to shards, a list of problems, a description, or pictures."""

from __future__ import annotations

import re
import time
from typing import Any

from ltcore.cli.args import ShardsArgs, SourceArgs
from ltcore.cli.bar import progress
from ltcore.cli.engine import engine_of
from ltcore.cli.entry import say
from ltcore.data.config import READING_KEYS, DataConfig
from ltcore.data.datasets.dataset import Lists
from ltcore.data.datasets.image_root import is_hidden
from ltcore.data.datasets.prepare import make, prepare, selection_remarks
from ltcore.data.datasets.registry import recognize
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.validate import check_dataset, describe
from ltcore.errors import ConfigError
from ltcore.reporting.terminal import Terminal
from ltcore.text import printable
from ltcore.uris import is_local, local_path

_UNSAFE = re.compile(r"[^\w.-]+")
"""Characters of a data set's name that a folder's does not get."""


def make_shards(args: ShardsArgs) -> int:
    """Makes, checks, describes or draws shards. Returns the exit code: 1 where the check found a problem."""
    started = time.monotonic()
    if args.source == "check":
        problems = check_dataset(args.target, progress=say)
        print("".join(f"{problem}\n" for problem in problems), end="")
        say(f"{len(problems)} problems found in {time.monotonic() - started:.1f} s")
        return 1 if problems else 0
    if args.source == "pictures":
        return _draw(args)
    if args.source != "info":
        refuse_inside(args.source, args.target, args.lists)
        how: dict[str, Any] = {"lists": args.lists, "shard_size": args.shard_size, "reencode": args.reencode}
        bar = progress if Terminal(stderr=True).is_terminal else None
        engine = engine_of(args.engine, say, debug=args.debug)
        make(_config(args, args.source), args.target, **how, engine=engine, bar=bar, progress=say)
        say(f"made in {time.monotonic() - started:.1f} s")
    print(describe(args.target))
    return 0


def refuse_inside(source: str, target: str, lists: Lists) -> None:
    """Raises ConfigError for shards inside the folder whose images they are made of, unless lists say which these are.

    Its folders are classes, so that it could not be read again. A hidden folder is none.
    """
    if lists or not (is_local(source) and is_local(target) and recognize(source).has_folders):
        return
    images, shards = local_path(source).resolve(), local_path(target).resolve()
    if images in shards.parents and images.is_dir() and not is_hidden(shards.relative_to(images).as_posix()):
        raise ConfigError(f"{target} lies in {source}, whose folders are classes: give a place beside it.")


def source_config(args: SourceArgs, uri: str, **more: Any) -> DataConfig:
    """Returns what the command line says of a source. Raises ConfigError for values that the section does not take."""
    try:
        return DataConfig(uri=uri, **{key: getattr(args, key) for key in READING_KEYS}, **more)
    except ValueError as error:
        raise ConfigError(f"data.{error}.") from error


def _config(args: ShardsArgs, uri: str) -> DataConfig:
    keys = ("imbalance_factor", "subset", "subset_seed", "val_per_class", "images", "annotations")
    return source_config(args, uri, **{key: getattr(args, key) for key in keys})


def _draw(args: ShardsArgs) -> int:
    """Writes pictures of any data; images are made into shards first, as a training does. Prints the paths."""
    from ltcore.reporting.data_pictures import write_pictures

    if args.lists:
        raise ConfigError("--list does not go with pictures: make shards of the lists, and give those.")
    cfg = _config(args, args.target)
    uri = prepare(cfg, progress=say, needs_train=False, engine=engine_of(args.engine, say, debug=args.debug))
    manifest = read_manifest(uri)
    for remark in selection_remarks(cfg, manifest):
        say(remark)
    folder = args.pictures_dir or f"{_UNSAFE.sub('_', manifest.name)}-pictures"
    for path in write_pictures(uri, folder):
        print(printable(path))
    return 0
