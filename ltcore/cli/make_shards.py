"""``make_shards.py``: from the command line's answers to shards, a list of problems, or a description."""

from __future__ import annotations

import time

from ltcore.cli.args import ShardsArgs
from ltcore.cli.entry import say
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make
from ltcore.data.shards.validate import check_dataset, describe
from ltcore.errors import ConfigError


def make_shards(args: ShardsArgs) -> int:
    """Makes, checks or describes shards. Returns the exit code: 1 where the check found a problem."""
    started = time.monotonic()
    if args.source == "check":
        problems = check_dataset(args.target, progress=say)
        print("".join(f"{problem}\n" for problem in problems), end="")
        say(f"{len(problems)} problems found in {time.monotonic() - started:.1f} s")
        return 1 if problems else 0
    if args.source != "info":
        try:
            cfg = DataConfig(
                uri=args.source,
                imbalance_factor=args.imbalance_factor,
                subset=args.subset,
                subset_seed=args.subset_seed,
                val_per_class=args.val_per_class,
                classes_from=args.classes_from,
                max_bad_samples=args.max_bad_samples,
                image_column=args.image_column,
                label_column=args.label_column,
                split_column=args.split_column,
                attribute_column=args.attribute_column,
                label_key=args.label_key,
            )
        except ValueError as error:
            raise ConfigError(f"data.{error}.") from error
        make(cfg, args.target, lists=args.lists, shard_size=args.shard_size, progress=say)
        say(f"made in {time.monotonic() - started:.1f} s")
    print(describe(args.target))
    return 0
