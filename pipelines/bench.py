"""Measure this machine: every number beside a peer in the same run, as a table and as JSON. Nothing else may compute here.

python pipelines/bench.py                               read | decode | to device | step | full loop
python pipelines/bench.py sweep                         a further trial against Ray Train inside Ray Tune
python pipelines/bench.py memory                        10k against 200k rows through the stream tier
python pipelines/bench.py large --data jpegs.zip        large JPEGs against the machine's decode limit
python pipelines/bench.py losses                        every loss against the literal form of its paper
python pipelines/bench.py all --data jpegs.zip --rounds 5 --output bench.json
"""

from __future__ import annotations

import argparse

try:
    from ltcore.benchmarks.options import BENCHES, Options
    from ltcore.cli import args as cli
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("what", nargs="?", default="ladder", choices=(*BENCHES, "all"), help="what to measure (default: ladder)")
    add("--data", metavar="URI", help="shards, image folder or zip for ladder and large (default: generated images)")
    add("--rounds", type=positive, default=5, metavar="N", help="measured rounds of every side (default: 5)")
    add("--quick", action="store_true", help="small sizes, one round: shows that it runs, says nothing about speed")
    add("--output", default="bench.json", metavar="FILE", help="all measurements as JSON (default: bench.json)")
    add("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args()


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return int(text)


def main() -> None:
    args = parse()
    from ltcore.benchmarks.run import bench

    bench(Options(what=args.what, data=args.data, rounds=args.rounds, quick=args.quick, output=args.output))


if __name__ == "__main__":
    cli.run_main(main)
