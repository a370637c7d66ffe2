"""Evaluate a checkpoint under the CLT, ALT and GLT protocols, or predict images with it.

python pipelines/evaluate.py ~/ltcore-runs/my-run                  every test split -> metrics/
python pipelines/evaluate.py ~/ltcore-runs/my-run --protocol glt
python pipelines/evaluate.py ~/ltcore-runs/my-run --protocols      CLT, ALT and GLT side by side, with intervals
python pipelines/evaluate.py ~/ltcore-runs/my-run --posthoc-tau 1  logits less the log class prior of training
python pipelines/evaluate.py ~/ltcore-runs/my-run --data photos/   another test set: its classes go by name
python pipelines/evaluate.py ~/ltcore-runs/my-run cat.jpg dog.png  class and probability of each image, as lines

ALT takes a run on train_cbl that is else the same. It is looked for beside the one that is given, or trained; runs of several
seeds give means and deviations:

python pipelines/evaluate.py ~/ltcore-runs/my-run --protocols --train-missing
python pipelines/evaluate.py ~/ltcore-runs/my-run-seed* --protocols --output protocols.csv

Predictions as a table (.parquet, .csv or .jsonl), a row for each image, also for those that cannot be read:

python pipelines/evaluate.py ~/ltcore-runs/my-run new-photos/ --output predictions.csv --top-k 5
python pipelines/evaluate.py ~/ltcore-runs/my-run --data photos/ --split test --output predictions.parquet --logits
python pipelines/evaluate.py ~/ltcore-runs/my-run s3://bucket/shards --output predictions.parquet --engine ray

Networks compute in float32, so the last digits of a run that trained in bf16 or fp16 may be others than in its own tests.
IMAGES are predicted as they are; --data is a data set with splits, measured, or with such an --output predicted. The exit code
is 1 where an image could not be read.
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
