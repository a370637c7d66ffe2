"""``--dry-run``: what a run needs and takes, on one screen; everything that can be checked without training is."""

from __future__ import annotations

from ltcore.config.schema import RunConfig
from ltcore.runtime.doctor.probe import leave_marker, remove_marker
from ltcore.training.cost import dry_run_text
from ltcore.training.rehearsal import rehearse


def dry_run(cfg: RunConfig, data_uri: str, root: str, *, runs: str = "") -> str:
    """Returns what a dry run has to say. Raises what the run itself would raise where it could not start.

    ``runs`` says how many runs there are of which ``cfg`` is one; '' for a single one.
    """
    lines = [dry_run_text(cfg, data_uri)]
    remove_marker(root, leave_marker(root))
    lines.append(f"Results can be written to {root}.")
    if cfg.stage2 is None:
        lines += rehearse(cfg, data_uri, root)
    if runs:
        lines.append(f"{runs}; the times above are of one run.")
    return "\n".join([*lines, "Nothing was started (--dry-run)."])
