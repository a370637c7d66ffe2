"""Were all trials of a sweep ended by the same rule? A callback that ended one may be another by now."""

from __future__ import annotations

from itertools import chain

from ltcore.config.plugged import KEY, wanted
from ltcore.config.schema import RunConfig, SweepConfig
from ltcore.storage import entries, join
from ltcore.training.same_run import refuse_other_end
from ltcore.tuning.identity import changes
from ltcore.tuning.trials import folder_of, read_records


def check_same_ends(sweep: SweepConfig, base: RunConfig, uri: str) -> None:
    """Raises CheckpointError where a callback ended a trial at ``uri`` that is another one in ``base``.

    Trials that ended are not started again, so that they cannot notice it themselves. What the sweep varies, or one of its
    variants sets, may differ.
    """
    now, varied = base.to_flat(), {*sweep.space, *chain.from_iterable(sweep.variants.values())}
    if "callbacks" not in base.to_dict() and not any(key.startswith("callbacks.") for key in varied):
        return  # none could be another; one that was left out is another sweep
    now[KEY] = ",".join(dict.fromkeys([*base.plugins, *sorted(wanted(changes(sweep)))]))
    names = [name for name, is_file in entries(join(uri, "trials")).items() if not is_file]
    for name, record in read_records(uri, names).items():
        if record is not None:
            own = {
                key: value
                for key, value in record.config.items()
                if any(f"{key}.".startswith(f"{each}.") for each in varied)
            }
            refuse_other_end(folder_of(uri, name), record.reason, record.config, now | own)
