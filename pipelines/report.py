"""Render a sweep, or runs side by side, as one self-contained HTML page.

    python pipelines/report.py ~/ltcore-runs/tune_lpa                      a sweep, finished or not
    python pipelines/report.py ~/ltcore-runs/ce ~/ltcore-runs/bs           runs, compared
    python pipelines/report.py ~/ltcore-runs/ce --output ce.html
    python pipelines/report.py ~/ltcore-runs/* --markdown                  finished runs as a table, seeds together

Prints the path of the page, or the table.
"""

from __future__ import annotations

try:
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import report
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None

if __name__ == "__main__":
    run_main(lambda: report(__doc__))
