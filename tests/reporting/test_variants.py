"""The table of a comparison says who was chosen, who cannot be told from it, and who was not ranked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ltcore.config.records import SweepRecord, VariantRecord
from ltcore.errors import ConfigError
from ltcore.reporting.report import make_table, variants_lines, variants_markdown, variants_table, write_report
from tests.reporting.comparison import comparison


def test_the_table_of_three_seeds() -> None:
    rows = {row.pop("method"): row for row in variants_table(comparison(3))}
    assert rows["lpa"] == {
        "val top-1": "61.0±1.0",
        "val shots": "61/–/–",
        "test top-1": "61.0±1.0",
        "test shots": "–/–/–",
        "time": "13 s",
        "verdict": "chosen",
    }
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "lpa": "chosen",
        "ce": "worse",
        "dro": "not distinguishable",
        "balanced_softmax": "better",
        "paco": "not ranked",
    }
    assert rows["paco"]["test top-1"] == rows["paco"]["time"] == "—"


def test_the_sentences_of_three_seeds() -> None:
    first, broken, told, fastest = variants_lines(comparison(3))
    assert first == "Chosen on validation: lpa (validation top-1 61.0 ± 1.0%)."
    assert broken == "paco is not ranked: NumericError: nan"
    assert told.startswith(
        "In test top-1, not distinguishable from it: dro; worse: ce; better: balanced_softmax (95% intervals over 3 "
    )
    assert fastest == "Of those that cannot be told apart, lpa trains the fastest (13 s)."


def test_one_seed_tells_nothing_and_no_test_is_said() -> None:
    sweep = comparison(1)
    assert [row["verdict"] for row in variants_table(sweep)] == ["chosen", *["one seed"] * 3, "not ranked"]
    assert "1 seed cannot tell methods apart: sweep.seeds=3" in variants_lines(sweep)[-1]
    untested = replace(sweep, variants=tuple(replace(v, test=None, difference=None) for v in sweep.variants))
    assert list(variants_table(untested)[0]) == ["method", "val top-1", "val shots", "time", "verdict"]
    assert "It was not tested" in variants_lines(untested)[-1]
    assert variants_lines(replace(sweep, variants=(), winner=None)) == [
        "Nothing is chosen yet: not every variant has been trained."
    ]


def test_a_page_before_anything_was_trained(tmp_path: Path) -> None:
    comparison(3, variants=(), winner=None).write(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "Nothing is chosen yet" in page and "<h2>The methods</h2>" not in page


def protocols(seeds: int) -> SweepRecord:
    """Returns a comparison whose variants were tested under each protocol of generalized long tails."""
    sweep = comparison(seeds)

    def tested(variant: VariantRecord) -> VariantRecord:
        if variant.test is None:
            return variant
        values = variant.test["test"]["top1"]
        tests = {split: {"top1": values, "macro_precision": values} for split in ("test_cbl", "alt", "test_gbl")}
        return replace(variant, test=tests, difference=None)

    return replace(sweep, variants=tuple(map(tested, sweep.variants)))


def test_every_protocol_has_a_column_glt_first() -> None:
    row = variants_table(protocols(2))[0]
    assert list(row) == ["method", "val top-1", "val shots", "GLT", "CLT", "ALT", "GLT shots", "time", "verdict"]
    assert (row["GLT"], row["ALT"]) == ("61.0±1.4", "61.0±1.4")


def test_the_markdown_table_has_accuracy_and_precision_of_each_protocol(tmp_path: Path) -> None:
    sweep = protocols(2)
    head, rule, first, *_, last = variants_markdown(sweep).splitlines()
    assert head == (
        "| method | seeds | validation top-1 | GLT top-1 | GLT macro precision | CLT top-1 | CLT macro precision | ALT top-1 | "
        "ALT macro precision | GLT many / medium / few | time each |"
    )
    assert head.count("|") == rule.count("|") == first.count("|") == last.count("|")
    assert first.startswith("| `lpa` | 2 | 61.0±1.4 | 61.0±1.4 | 61.0±1.4 |") and first.endswith("| – / – / – | 13 s |")
    assert last.startswith("| `paco` | 2 | — | — |")
    sweep.write(tmp_path)
    assert make_table([tmp_path]) == (variants_markdown(sweep), [])


def test_rows_and_columns_of_the_markdown_table_can_be_chosen(tmp_path: Path) -> None:
    sweep = protocols(2)
    sweep.write(tmp_path)
    table, _ = make_table([tmp_path], rows=("paco", "lpa"), columns=("GLT macro precision", "seeds"))
    assert table.splitlines() == [
        "| method | GLT macro precision | seeds |",
        "| --- | --- | --- |",
        "| `paco` | — | 2 |",
        "| `lpa` | 61.0±1.4 | 2 |",
    ]
    with pytest.raises(ConfigError, match=r"--rows: there is no 'lpe'. Did you mean lpa\?"):
        make_table([tmp_path], rows=("lpe",))
    with pytest.raises(ConfigError, match=r"--columns: there is no 'GLT precision'. Did you mean GLT macro precision"):
        make_table([tmp_path], columns=("GLT precision",))


def test_runs_have_no_rows_to_choose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose from a comparison of variants .* which .* is not"):
        make_table([tmp_path], rows=("lpa",))


def judged_by_class_means() -> SweepRecord:
    """Returns a comparison by the nearest class mean, whose tests judge the classifier as well."""
    sweep = comparison(2)

    def tested(variant: VariantRecord) -> VariantRecord:
        val = {"val/ncm_top1": (0.7, 0.7), "val/few": (0.1, 0.1), "val/ncm_few": (0.5, 0.5)}
        own = {"top1": (0.6, 0.6), "many": (0.9, 0.9), "few": (0.3, 0.3), "macro_precision": (0.2, 0.2)}
        means = {"ncm_top1": (0.8, 0.8), "ncm_many": (0.7, 0.7), "ncm_few": (0.4, 0.4)}
        return replace(variant, val=val, test={"test": own | means}, difference=None)

    return replace(sweep, metric="val/ncm_top1", variants=tuple(map(tested, sweep.variants)))


def test_shot_groups_are_of_the_predictor_whose_accuracy_stands_beside_them(tmp_path: Path) -> None:
    sweep = judged_by_class_means()
    head, _, first, *_ = variants_markdown(sweep).splitlines()
    assert head == (
        "| method | seeds | validation NCM top-1 | test NCM top-1 | test top-1 | test macro precision | "
        "test NCM many / medium / few | time each |"
    )
    assert "| 70.0±0.0 | 80.0±0.0 | 60.0±0.0 | 20.0±0.0 | 70 / – / 40 |" in first
    row = variants_table(sweep)[0]
    assert (row["val shots"], row["test shots"]) == ("–/–/50", "70/–/40")
    by_classifier = replace(sweep, metric="val/top1")
    head, _, first, *_ = variants_markdown(by_classifier).splitlines()
    assert "| test top-1 | test NCM top-1 | test macro precision | test many / medium / few |" in head
    assert "| 60.0±0.0 | 80.0±0.0 | 20.0±0.0 | 90 / – / 30 |" in first
    assert variants_table(by_classifier)[0]["val shots"] == "–/–/10"


def test_the_page_shows_the_class_means_by_which_it_ranks(tmp_path: Path) -> None:
    judged_by_class_means().write(tmp_path)
    page = write_report(tmp_path).read_text()
    assert all(f"test NCM {words}" in page for words in ("top-1", "many-shot", "few-shot")) and "test top-1" in page


def test_a_column_says_what_is_trained_where_variants_differ_in_it(tmp_path: Path) -> None:
    sweep = comparison(2)
    assert "trained parameters" not in variants_markdown(sweep)
    first, *others = sweep.variants
    tuned = replace(first, changes={"model.tune": "lora"}, trained_parameters=367_104)
    sweep = replace(sweep, variants=(tuned, *others))
    head, _, first_line, *_, last = variants_markdown(sweep).splitlines()
    assert head.endswith("| trained parameters | time each |")
    assert first_line.endswith("| 367,104 | 13 s |") and last.endswith("| — | — |")
    assert variants_table(sweep)[0]["trained parameters"] == "367,104"
    sweep.write(tmp_path)
    assert "<td>367,104</td>" in write_report(tmp_path).read_text()
