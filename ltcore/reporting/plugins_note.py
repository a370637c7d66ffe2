"""What a report says of the plugins that its runs were trained with. It needs none of them itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ltcore.config.plugged import KEY, names_of
from ltcore.config.records import RunRecord
from ltcore.plugins.loading import changed


def changed_plugins(folders: Sequence[Path | str]) -> list[str]:
    """Returns a sentence for each plugin of the runs that is missing here or has another version."""
    found = dict[str, None]()
    for folder in map(Path, folders):
        places = [folder] if (folder / "run.json").exists() else [f.parent for f in islice(folder.rglob("run.json"), 1)]
        for place in places:  # all trials of a sweep have the same plugins
            record = RunRecord.read(place)
            found |= dict.fromkeys(changed(names_of(record.config.get(KEY)) if record else ()))
    return list(found)
