"""The benchmark's arithmetic and structure. Nothing here looks at how fast anything is."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ltcore.benchmarks import datasets as images
from ltcore.benchmarks import machine, memory, sweep
from ltcore.benchmarks.baselines import BareLoop
from ltcore.benchmarks.harness import Aim, Measurement, Rung, Section, duration, interleave, repeated
from ltcore.benchmarks.largest import largest_tensor
from ltcore.benchmarks.loss_cases import NAMES, QUICK_SIZES, Case
from ltcore.benchmarks.options import Options
from ltcore.benchmarks.reference_calls import dro_by_bank, literally
from ltcore.benchmarks.run import bench
from ltcore.benchmarks.sweep import beyond, collected
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError, LtcoreError
from ltcore.objective.objective import Objective
from tests.benchmarks.documents import check_document
from tests.records import run_record


@pytest.mark.parametrize(
    ("aim", "measured", "verdict"),
    [
        (Aim(">=", 10), 10.0, "met"),
        (Aim(">=", 10), 9.0, "missed by 10.0%"),
        (Aim("<=", 0.05), 0.05, "met"),
        (Aim("<=", 0.05), 0.06, "missed by 20.0%"),
        (Aim("<", 1.1), 1.1, "missed by 0.0%"),
        (Aim("<", 1.1), 1.0999, "met"),
    ],
)
def test_a_verdict_says_by_how_much(aim: Aim, measured: float, verdict: str) -> None:
    assert aim.verdict(measured) == verdict


def test_sides_take_turns_after_one_unmeasured_round() -> None:
    calls: list[str] = []

    def side(name: str, amount: float) -> Any:
        return lambda: calls.append(name) or amount

    measured = interleave({"a": side("a", 3), "b": side("b", 5)}, 3)
    assert calls == ["a", "b"] * 4
    assert [(m.side, m.round) for m in measured] == [(s, r) for r in range(3) for s in "ab"]
    assert all(m.value == m.amount / m.seconds for m in measured)
    assert {m.amount for m in measured if m.side == "b"} == {5}
    timed = interleave({"a": side("a", 4)}, 1, duration)[0]
    assert timed.value == timed.seconds / 4


def test_a_section_compares_medians() -> None:
    section = Section("s", "images/s", [Measurement("a", i, v) for i, v in enumerate((1.0, 9.0, 2.0))])
    section.measurements += [Measurement("b", i, v) for i, v in enumerate((4.0, 5.0, 100.0))]
    section.rungs = [Rung("a", "b", Aim(">=", 0.5)), Rung("a", "b"), Rung("a", "b", Aim("<=", 2, on="median"))]
    rows = section.plain()["rungs"]
    assert [row["ratio"] for row in rows] == [0.4] * 3
    assert rows[0]["measured"] == {"median": 2.0, "min": 1.0, "max": 9.0}
    assert [row["verdict"] for row in rows] == ["missed by 20.0%", "no aim", "met"]
    assert [row["wanted"] for row in rows] == [">= 0.5", "", "median <= 2"]


def test_short_calls_are_repeated_and_counted() -> None:
    calls: list[int] = []
    work = repeated(lambda: calls.append(1), 0.0)
    assert [work(), work(), work()] == [2, 1, 1]  # two that find the number, then one per round
    assert len(calls) == 4


@pytest.mark.slow
def test_the_ladder(tmp_path: Path) -> None:
    threads, cpus, output = torch.get_num_threads(), os.sched_getaffinity(0), tmp_path / "bench.json"
    document = bench(Options(what="ladder", quick=True, output=str(output)))
    check_document(document, output)
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (threads, cpus)
    (section,) = document["sections"]
    wanted = {rung["name"]: rung["wanted"] for rung in section["rungs"]}
    assert wanted == {
        "read": "",
        "decode (cached loader)": ">= 10",
        "decode (threaded loader)": "",
        "to device": "",
        "step": "",
        "full loop": ">= 0.95",
    }
    amounts = {m["side"]: m["amount"] for m in section["measurements"]}
    num_images = ShardStore(images.shards(None, quick=True)).manifest.split("train").num_samples
    whole_batches = num_images // 32 * 32
    assert amounts["webdataset, bytes"] == amounts["webdataset, decoded"] == num_images
    for side in (
        "read",
        "decode (cached loader)",
        "decode (threaded loader)",
        "to device",
        "full loop",
        "bare: full loop",
    ):
        assert amounts[side] == whole_batches
    assert all(m["value"] == m["amount"] / m["seconds"] for m in section["measurements"])


@pytest.mark.slow
def test_losses(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    document = bench(Options(what="losses", quick=True, output=str(output)))
    check_document(document, output)
    arithmetic, forwards, held, timed, quality = document["sections"]
    pairs = {(rung["name"], rung["peer"]) for rung in arithmetic["rungs"]}
    assert pairs == {(name, f"{name}, literal") for name in NAMES} | {(name, "training step") for name in NAMES} | {
        ("dro", "dro, bank of 200"),
        ("lpa, loss alone", "training step"),
        ("lpa, attributes", "forward"),
    }
    assert all(m["value"] == 1000 * m["seconds"] / m["amount"] for m in arithmetic["measurements"])
    assert {rung["peer"] for rung in forwards["rungs"]} == {"forward"}
    assert {rung["verdict"] for rung in held["rungs"]} == {"met"}  # sizes, not times
    assert [rung["wanted"] for rung in timed["rungs"] + quality["rungs"]] == ["<= 1", "<= 1.01"]


@pytest.mark.parametrize("name", NAMES)
def test_a_literal_form_is_the_same_loss(name: str) -> None:
    case = Case(QUICK_SIZES[0])
    objective = case.objective(name)
    literal = literally(case, name, objective)()
    out = case.out_for(objective)
    gradients = {key: getattr(out, key).grad for key in ("logits_BC", "features_BD", "query_Bd")}
    for key in gradients:
        getattr(out, key).grad = None
    torch.testing.assert_close(literal.float(), case.ours(objective)(), rtol=1e-4, atol=1e-5)
    for key, expected in gradients.items():
        found = getattr(out, key).grad
        if expected is None or found is None:
            assert expected is found
        else:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_lpa_without_its_attributes_is_the_same_loss_and_together_they_are_the_whole() -> None:
    case = Case(QUICK_SIZES[0])
    whole, loss, attributes = (case.objective("lpa") for _ in range(3))
    torch.testing.assert_close(case.ours(loss, attributes=False)(), case.ours(whole)(), rtol=0, atol=0)
    case.attributes(attributes)()

    def changed(objective: Objective, kind: str) -> bool:
        old, new = (each.memories()[kind] for each in (case.objective("lpa"), objective))
        before, after = (m.pending() | m.published() for m in (old, new))
        return any(not torch.equal(before[name], after[name]) for name in before)

    for kind, of_loss in [("Prototypes", False), ("Queue", True)]:
        assert changed(whole, kind)
        assert (changed(loss, kind), changed(attributes, kind)) == (of_loss, not of_loss)


def test_the_form_that_reduces_the_bank_is_the_same_loss() -> None:
    case = Case(QUICK_SIZES[0])
    objective = case.objective("dro")
    torch.testing.assert_close(dro_by_bank(case, objective)(), case.ours(objective)(), rtol=1e-4, atol=1e-5)


def test_the_largest_tensor_is_seen_forward_and_backward() -> None:
    small = torch.ones(7, requires_grad=True)
    assert largest_tensor(lambda: small.sum()) == 1
    assert largest_tensor(lambda: (small[:, None] * small).sum().backward()) == 49


def test_repeated_shards_hold_every_image_so_many_times() -> None:
    source = images.generated([6, 4])
    once, thrice = ShardStore(source), ShardStore(images.repeat(source, 3))
    assert thrice.manifest.split("train").num_samples == 30
    np.testing.assert_array_equal(thrice.labels("train"), np.tile(once.labels("train"), 3))
    assert thrice.read_rows("train", np.arange(30)) == once.read_rows("train", np.arange(10)) * 3
    assert images.repeat(source, 3) == thrice.uri  # found again


def test_the_bare_loop_crops_and_mirrors_and_normalizes() -> None:
    pixels = torch.full((64, 3, 16, 16), 51, dtype=torch.uint8)
    bare = BareLoop(
        torch.nn.Linear(1, 1),
        pixels,
        torch.zeros(64, dtype=torch.int64),
        mean=(0.1,) * 3,
        std=(0.5,) * 3,
        batch_size=32,
        autocast=None,
    )
    augmented = bare.augment(pixels)
    assert augmented.shape == pixels.shape
    found = augmented.unique()
    torch.testing.assert_close(found, torch.tensor([-0.2, 0.2]), rtol=0, atol=1e-6)  # padding, image
    assert (augmented[:, :, 2:-2, 2:-2] > 0).all()  # no shift reaches further than S / 8


def test_a_further_trial_beyond_its_training() -> None:
    assert beyond([10.0, 12.0, 15.0], [100.0, 1.5, 2.5]) == 0.5


def test_a_trial_that_did_not_finish_is_named(tmp_path: Path) -> None:
    run_record(status="failed", reason="no luck", seconds=1.0).write(tmp_path / "trials" / "b")
    with pytest.raises(LtcoreError, match="Trial b did not finish: no luck"):
        collected(str(tmp_path), {"b": 1.0})
    with pytest.raises(LtcoreError, match=r"it has no run\.json"):
        collected(str(tmp_path), {"a": 1.0})


def test_the_load_is_warned_about() -> None:
    assert machine.warning(0.5) == ""
    assert "load average 0.75" in machine.warning(0.75)


@pytest.mark.parametrize("folder", ["{letter}/", ""], ids=["classes", "flat"])
def test_large_images(folder: str, tmp_path: Path) -> None:
    path, output = tmp_path / "jpegs.zip", tmp_path / "bench.json"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(24):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(out, "JPEG")
            archive.writestr(f"{folder.format(letter='ab'[number % 2])}{number}.jpg", out.getvalue())
    document = bench(Options(what="large", data=str(path), quick=True, output=str(output)))
    check_document(document, output)
    amounts = {m["side"]: m["amount"] for m in document["sections"][0]["measurements"]}
    assert amounts == {"threaded loader": 24, "decode limit": 16}


def test_large_images_must_be_given_and_be_jpegs() -> None:
    with pytest.raises(ConfigError, match="--data"):
        bench(Options(what="large", quick=True))
    with pytest.raises(ConfigError, match="other images"):
        bench(Options(what="large", data=images.generated([6, 4]), quick=True))


def test_resident_memory_leaves_out_what_is_shared() -> None:
    found = memory.own_bytes(Path("/proc/self"))
    fields = memory.status(Path("/proc/self"))
    assert 0 < found <= int(fields["VmRSS"].split()[0]) * 1024 * 1.1
    assert memory.own_bytes(Path("/proc/0")) == 0


@pytest.mark.ray
@pytest.mark.slow
def test_trials_and_memory_with_ray(tmp_path: Path) -> None:
    from ltcore.runtime.cluster import connect, disconnect

    cfg = sweep.config(Options(quick=True))
    connect()
    try:
        ends, seconds = sweep.run_ours(cfg, str(tmp_path / "sweep"), 2)
        assert ends == sorted(ends) and len(ends) == len(seconds) == 2 and min(seconds) > 0
        peaks = memory.read_stream(cfg.data.uri, 128)
    finally:
        disconnect()
    assert peaks["together_bytes"] >= peaks["worker_bytes"] > 0
    assert peaks["tasks_bytes"] > 0
