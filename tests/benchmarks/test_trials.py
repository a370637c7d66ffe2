"""A search of trials that train nothing is measured in a process and a Ray of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.benchmarks.trials import MEASURES, of_real_trials
from ltcore.cli.parsers import read_bench

pytestmark = pytest.mark.timeout(600)


def test_the_flag_goes_with_scale_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_bench(None, ["scale", "--trials"]).trials
    assert not read_bench(None, ["scale"]).trials
    with pytest.raises(SystemExit):
        read_bench(None, ["ladder", "--trials"])
    assert "--trials goes with scale, not with ladder: give bench scale --trials" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_trials_of_a_real_ray(tmp_path: Path) -> None:
    size = 3  # one: most of a minute is two starts of Ray
    lines = of_real_trials(tmp_path, [size]).lines
    assert {name: list(line.values) for name, line in lines.items()} == {name: [size] for name in MEASURES}
    found = sorted(path.parent.name for path in (tmp_path / f"real-trials-{size}" / "all").rglob("run.json"))
    assert found == [f"{number:05d}" for number in range(size)], "the one that was missing was run again"
    folder = lines["Tune's whole folder, which goes with the search"].values
    state = lines["Tune's record of the experiment"].values
    assert folder[size] > state[size] > 0, "every trial leaves files in it"
    again = lines["the same command, until the one that is missing is submitted"].values
    whole = lines["start, until the last one is submitted"].values
    assert 0 < again[size] < whole[size]
