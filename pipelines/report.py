"""Render a sweep, or runs side by side, as one self-contained HTML page.

    python pipelines/report.py ~/ltcore-runs/tune_lpa                      a sweep, finished or not
    python pipelines/report.py ~/ltcore-runs/ce ~/ltcore-runs/bs           runs, compared
    python pipelines/report.py ~/ltcore-runs/ce --output ce.html
    python pipelines/report.py ~/ltcore-runs/* --markdown                  finished runs as a table, seeds together

Prints the path of the page, or the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from ltcore.cli import args as cli
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path, help="a sweep directory or run directories")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the page goes (default: into the directory)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table of results instead of a page")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args()

    from ltcore.reporting.report import make_report, make_table
    from ltcore.text import printable

    if args.markdown and args.output:
        parser.error("--markdown prints a table: redirect it into a file instead of --output")
    if args.markdown:
        table, left_out = make_table(args.directories)
        print(table)
        print(
            *(f"left out {printable(reason)}" for reason in left_out),
            sep="\n",
            end="\n" if left_out else "",
            file=sys.stderr,
        )
    else:
        print(printable(str(make_report(args.directories, args.output))))


if __name__ == "__main__":
    cli.run_main(main)
