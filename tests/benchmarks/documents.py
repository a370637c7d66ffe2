"""What the JSON of every benchmark holds."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

VERDICT = re.compile(r"met|no aim|missed by \d+\.\d%")


def check_document(document: dict[str, Any], output: Path) -> None:
    """What every benchmark's JSON holds."""
    assert json.loads(output.read_text()) == json.loads(json.dumps(document))
    assert document["schema"] == 1 and document["rounds"] == 1 and document["quick"] is True
    assert {"cpu", "allocated_cpus", "torch_threads", "load_average", "versions"} <= document["hardware"].keys()
    assert bool(document["warning"]) == (document["hardware"]["load_average"][0] > 0.5)
    for section in document["sections"]:
        values: dict[str, list[float]] = {}
        for measurement in section["measurements"]:
            values.setdefault(measurement["side"], []).append(measurement["value"])
        for rung in section["rungs"]:
            own, peer = (statistics.median(values[rung[name]]) for name in ("name", "peer"))
            assert rung["measured"]["median"] == own and rung["peer_measured"]["median"] == peer
            assert rung["ratio"] == own / peer
            assert VERDICT.fullmatch(rung["verdict"])
            assert (rung["wanted"] == "") == (rung["verdict"] == "no aim")
