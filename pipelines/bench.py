"""Measure this machine: every number beside a peer in the same run, as a table and as JSON. Nothing else may compute here.

python pipelines/bench.py                               read | decode | to device | step | full loop
python pipelines/bench.py sweep                         a further trial against Ray Train inside Ray Tune
python pipelines/bench.py memory                        10k against 200k rows through the Ray loader
python pipelines/bench.py large --data jpegs.zip        large JPEGs against the machine's decode limit
python pipelines/bench.py losses                        every loss against the literal form of its paper
python pipelines/bench.py glt                           building a GLT benchmark against decoding and writing alone
python pipelines/bench.py scale [--trials]              how costs grow with shards, rows, workers and trials
python pipelines/bench.py gpu                           the step on the device: its parts, precisions, memory traffic
python pipelines/bench.py all --data jpegs.zip --rounds 5 --output bench.json
"""

from __future__ import annotations

try:
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import bench
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None

if __name__ == "__main__":
    run_main(lambda: bench(__doc__))
