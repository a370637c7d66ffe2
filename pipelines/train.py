"""Train one recipe, or continue it, on this machine or on the Ray cluster it belongs to.

python pipelines/train.py --data FOLDER                      your images; their size chooses the recipe
python pipelines/train.py digits_glt_lpa_dro_ifl             a demonstration on embedded data
python pipelines/train.py cifar100_lt_ce --data images.zip   a recipe on your images
python pipelines/train.py cifar100_lt_dro objective.terms.dro.radius=0.5 --name dro-half
python pipelines/train.py cifar100_lt_ce --workers 2         Ray Train with two workers
"""

from __future__ import annotations

try:
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import train
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None

if __name__ == "__main__":
    run_main(lambda: train(__doc__))
