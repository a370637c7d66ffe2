"""Make shards from images, check shards, or describe them.

python pipelines/make_shards.py images.zip OUT --imbalance-factor 100   train|val|test/<class>/<image> or <class>/<image>
python pipelines/make_shards.py FOLDER OUT --list train=a.txt --list test=b.txt   lines 'path label' below FOLDER
python pipelines/make_shards.py cifar100 OUT --imbalance-factor 100 --subset legacy   the published selection
python pipelines/make_shards.py check URI    reads everything and lists what is wrong
python pipelines/make_shards.py info URI     prints the manifest for a person
"""

from __future__ import annotations

import argparse
import sys
import time

try:
    from ltcore.cli import args as cli
    from ltcore.text import message
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", metavar="SOURCE|check|info", help="folder or zip of images, digits-glt, cifar10, cifar100")
    add("target", metavar="OUT|URI", help="where the shards are or will be: folder, s3:// or gs://")
    add("--imbalance-factor", type=float, help="largest / smallest training class (default: images as they are)")
    add("--subset", default="keyed", help="keyed (default), or legacy: the published one, CIFAR only")
    add("--subset-seed", type=int, default=0, help="of the selection and of the order in the shards (default 0)")
    add("--val-per-class", type=int, default=10, help="from training images that are not used otherwise (default 10)")
    add("--shard-size", type=int, default=1000, help="most images in one tar (default 1000)")
    add("--list", action="append", default=[], type=pair, metavar="SPLIT=FILE", help="list file; repeatable")
    add("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args()


def pair(text: str) -> tuple[str, str]:
    split, equals, file = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected SPLIT=FILE, got {text}")
    return split, file


def tell(text: str) -> None:
    print(message(text), file=sys.stderr, flush=True)


def main() -> int:
    args, started = parse(), time.monotonic()
    from ltcore.data.config import DataConfig
    from ltcore.data.datasets.prepare import make
    from ltcore.data.shards.validate import check_dataset, describe
    from ltcore.errors import ConfigError

    if args.source == "check":
        problems = check_dataset(args.target, progress=tell)
        print("".join(f"{problem}\n" for problem in problems), end="")
        tell(f"{len(problems)} problems found in {time.monotonic() - started:.1f} s")
        return 1 if problems else 0
    if args.source != "info":
        keys = ("imbalance_factor", "subset", "subset_seed", "val_per_class")
        try:
            cfg = DataConfig(uri=args.source, **{key: getattr(args, key) for key in keys})
        except ValueError as error:
            raise ConfigError(f"data.{error}.") from error
        make(cfg, args.target, lists=args.list, shard_size=args.shard_size, progress=tell)
        tell(f"made in {time.monotonic() - started:.1f} s")
    print(describe(args.target))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
