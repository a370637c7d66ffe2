"""Were all trials of a sweep ended by the same rule? A callback that ended one may be another by now."""

from __future__ import annotations

from ltcore.callbacks import ENDED_BY
from ltcore.config.load import probed_runs
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.storage import entries, join
from ltcore.training.same_run import refuse_other_end
from ltcore.tuning.trials import folder_of, read_records


def check_same_ends(sweep: SweepConfig, base: RunConfig, uri: str) -> None:
    """Raises CheckpointError where a callback ended a trial at ``uri`` that is another one in the same trial now.

    Trials that ended are not started again, so that they cannot notice it themselves. A callback that was left out altogether
    makes another sweep, which is refused as such.
    """
    names = [name for name, is_file in entries(join(uri, "trials")).items() if not is_file]
    ended = {
        name: record
        for name, record in read_records(uri, names).items()
        if record is not None and record.reason.startswith(ENDED_BY)
    }
    if not ended:
        return
    variants = dict(zip(sweep.variants, probed_runs(sweep, base), strict=False))  # which come first
    for name, record in ended.items():
        varied = {key: value for key, value in record.config.items() if key in sweep.space}
        now = variants.get(name.rpartition("-seed")[0], base).replace(varied)
        if "callbacks" in now.to_dict():
            refuse_other_end(folder_of(uri, name), record.reason, record.config, now.to_flat())
