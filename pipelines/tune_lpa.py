"""Sweep any keys of a recipe, or compare methods. Without arguments: LPA's alpha, DRO's epsilon and IFL's environments.

    python pipelines/tune_lpa.py                       embedded data, 8 trials, GLT, CLT and ALT, in minutes
    python pipelines/tune_lpa.py sweep.ablation=true   the same and what each term contributes, beside its controls
    python pipelines/tune_lpa.py --num-trials 24 sweep.space.objective.terms.lpa.weight=log:0.01,2
    python pipelines/tune_lpa.py cifar100_lt_lpa_dro_ifl --data images.zip --name my-sweep
    python pipelines/tune_lpa.py --sweep compare_methods --data photos     which method suits these images?
    ray submit cluster.yaml pipelines/tune_lpa.py      the same on an autoscaling GPU cluster

The same command again shows a finished sweep and continues an interrupted one.
"""

from __future__ import annotations

try:
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import tune
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None

if __name__ == "__main__":
    run_main(lambda: tune(__doc__))
