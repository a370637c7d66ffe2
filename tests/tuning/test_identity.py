"""When a stored comparison has what is asked for, when it grows, and when it is another one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltcore.config.load import base_run
from ltcore.config.records import SweepRecord
from ltcore.config.sweep import SweepConfig, read_sweep
from ltcore.errors import ConfigError
from ltcore.plugins import loading
from ltcore.tuning import record as records
from ltcore.tuning.identity import check_same_sweep, difference, has_more, identity
from ltcore.tuning.record import opened
from tests.plugins.state import forgotten_after
from tests.records import sweep_record


def comparison(seeds: int, alt: bool) -> SweepConfig:
    keys = {"sweep.recipe": "folder_small", "sweep.seeds": str(seeds), "sweep.alt": str(alt).lower()}
    return read_sweep("compare_methods", keys)


def stored(seeds: int, alt: bool) -> SweepRecord:
    sweep = comparison(seeds, alt)
    own: dict[str, Any] = {"num_trials": sweep.size, "sizes": (sweep.size,), "identity": identity(sweep)}
    return sweep_record(search="variants", status="finished", **own)


def asked(existing: SweepRecord, seeds: int, alt: bool) -> bool:
    """Whether something is trained for the command with these values."""
    sweep = comparison(seeds, alt)
    check_same_sweep(existing, identity(sweep), "/sweep")
    return has_more(existing, sweep)


def test_seeds_and_alt_of_a_comparison_grow_apart() -> None:
    assert not asked(stored(2, False), 2, False) and not asked(stored(2, True), 2, True)
    assert asked(stored(2, False), 3, False) and asked(stored(2, False), 2, True) and asked(stored(2, True), 3, True)
    assert asked(stored(1, False), 2, True), "both at once"


def test_what_a_comparison_has_is_not_taken_from_it() -> None:
    """Four seeds without ALT are as many runs as two with it."""
    for seeds in (1, 2, 4):
        with pytest.raises(ConfigError, match=r"/sweep holds a comparison under ALT too, .* give sweep.alt=true"):
            asked(stored(2, True), seeds, False)
    for alt in (False, True):
        with pytest.raises(ConfigError, match=r"sweep.seeds: 4 there, 2 now"):
            asked(stored(4, False), 2, alt)


PLUGIN = """
from ltcore import Metric, plugins
@plugins.metric("odd", summary="an odd one")
class Odd(Metric):
    def value(self, counted):
        return {value}
"""


@pytest.mark.parametrize(
    "use", [{"sweep.metric": "val/odd"}, {"sweep.variants.ce.train.select": "val/odd"}, {"train.select": "val/odd"}, {}]
)
def test_a_plugin_belongs_to_a_sweep_whatever_names_its_part(
    use: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric that ranks, a variant's loss, a key of the base: repaired in between, it is another sweep."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def named(value: float) -> dict[str, Any]:
        (tmp_path / "odd_metric.py").write_text(PLUGIN.format(value=value))
        with forgotten_after():
            loading.use(["odd_metric"], named=True)
            return identity(read_sweep("compare_methods", {"sweep.recipe": "folder_small", **use}))

    before, after = named(0.0), named(1.0)
    assert before == named(0.0) and difference(before, after) == (
        [f"plugins: {before['plugins']!r} there, {after['plugins']!r} now"] if use else []
    )
    assert ("plugins" in before) == bool(use)


def test_a_search_has_alt_beside_it_and_not_in_its_identity() -> None:
    with_alt, without = (read_sweep("tune_lpa", {"sweep.alt": alt}) for alt in ("true", "false"))
    assert identity(with_alt) == identity(without)


def test_a_comparison_that_grew_is_stored_as_what_it_is_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    existing, sweep = stored(2, False), comparison(2, True)
    monkeypatch.setattr(records.SweepRecord, "read", lambda _: existing)
    setup: Any = SimpleNamespace(
        sweep=sweep,
        uri="/sweep",
        base=base_run(sweep),
        num_trials=sweep.size,
        placement=SimpleNamespace(engine="trial"),
        gpu_share=None,
        weights_sha256={},
        cluster=SimpleNamespace(describe=lambda: "here"),
    )
    grown = opened(setup, identity(sweep))
    assert (grown.identity["sweep.alt"], grown.identity["sweep.seeds"], grown.sizes) == (True, 2, (22, 44))
    with pytest.raises(ConfigError, match="under ALT too"):
        check_same_sweep(grown, identity(comparison(4, False)), "/sweep")
