"""Evaluate a checkpoint under the CLT, ALT and GLT protocols, or predict image files with it.

python pipelines/evaluate.py ~/ltcore-runs/my-run                  every test split -> metrics/
python pipelines/evaluate.py ~/ltcore-runs/my-run --protocol glt
python pipelines/evaluate.py ~/ltcore-runs/my-run --posthoc-tau 1  logits less the log class prior of training
python pipelines/evaluate.py ~/ltcore-runs/my-run --data photos/   another test set: its classes go by name
python pipelines/evaluate.py ~/ltcore-runs/my-run cat.jpg dog.png  class and probability of each image
"""

from __future__ import annotations

try:
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import evaluate
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None

if __name__ == "__main__":
    run_main(lambda: evaluate(__doc__))
