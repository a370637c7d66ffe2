"""The table of what goes with what: complete, true, and with a reason for every refusal."""

from __future__ import annotations

import re

import pytest

from ltcore.cli import main
from ltcore.config import compatibility as composition
from ltcore.contracts import harness
from ltcore.objective.objective import Objective, ObjectiveConfig
from ltcore.objective.registry import BASES, TERMS, Terms
from tests.paths import ROOT

PAIRS = composition.pairs()


def reasons(row: str) -> dict[str, str]:
    return {pair.column: pair.reason for pair in PAIRS if pair.row == row}


def test_every_row_meets_every_column() -> None:
    assert {pair.row for pair in PAIRS} == {*BASES, *TERMS}
    columns = set(composition.columns())
    assert {*TERMS, "mixup", "accumulation", "experts"} <= columns
    for row in (*BASES, *TERMS):
        assert reasons(row).keys() == columns - {row}


def test_every_term_goes_with_every_base_of_single_images_and_every_other_term() -> None:
    assert all("mixes the features of two images" in reasons("bbn")[term] for term in TERMS)
    for row in (*(base for base in BASES if not BASES[base].build.pairs), *TERMS):
        assert all(reasons(row)[term] == "" for term in TERMS if term != row)


@pytest.mark.parametrize("base", [base for base, row in BASES.items() if not row.build.pairs])
def test_what_goes_is_really_built_and_gives_a_finite_loss(base: str) -> None:
    for terms in ({"lpa"}, {"dro"}, {"ifl"}, set(TERMS)):
        cfg = ObjectiveConfig(base=base, terms=Terms(**{name: harness.term_config(name) for name in terms}))
        objective = harness.fill(Objective(cfg, harness.stats(), harness.DIMS, seed=0).double())
        assert harness.run(objective, harness.ragged()).loss.isfinite()
    if not reasons(base)["mixup + ifl"]:
        objective = harness.fill(harness.build(base, ifl=harness.term_config("ifl")))
        assert harness.run_mixed(objective, harness.ragged()).loss.isfinite()


def test_what_is_refused_and_why() -> None:
    paco = {"paco", "gpaco"}
    assert {pair.row for pair in PAIRS if pair.column == "mixup" and pair.reason} == {*paco, "bbn", "lpa", "dro"}
    assert {pair.row for pair in PAIRS if pair.column == "accumulation" and pair.reason} == {*paco, "lpa", "dro"}
    assert {pair.row for pair in PAIRS if pair.column == "experts" and not pair.reason} == {"ride", "sade", *TERMS}
    assert {pair.row for pair in PAIRS if pair.column == "cutmix + remix" and pair.reason} == {
        *paco,
        "bbn",
        "lpa",
        "dro",
    }
    plain = {"cross_entropy", "focal", "lff"}
    balancing = set(BASES) - plain
    sampled = {pair.row for pair in PAIRS if pair.column == "class-balanced sampling" and pair.reason}
    assert sampled == balancing | {"ifl"} and "nothing is left to balance" in reasons("ldam")["class-balanced sampling"]
    assert {pair.row for pair in PAIRS if pair.column == "progressive sampling" and pair.reason} == {"bbn", "ifl"}
    assert {pair.row for pair in PAIRS if pair.column == "frozen classifier" and pair.reason} == paco
    assert {pair.row for pair in PAIRS if pair.column == "classifier tde" and pair.reason} == {"ldam", "ride"}
    assert {pair.row for pair in PAIRS if pair.column == "stage 2" and not pair.reason} == {*plain, *TERMS}
    assert "balanced twice" in reasons("balanced_softmax")["stage 2"]
    assert reasons("paco")["mixup"].endswith("objective.base=paco, which is not a function of one label")
    for pair in PAIRS:
        if pair.reason:
            assert len(pair.reason) > 40 and "\n" not in pair.reason, pair


def test_the_markdown_says_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    table, _, notes = composition.markdown().partition("\n\n")
    header, ruler, *lines = table.splitlines()
    columns = [cell.strip() for cell in header.strip("|").split("|")][1:]
    assert ruler.count("---") == len(columns) + 1 and len(lines) == len(BASES) + len(TERMS)
    texts = dict(re.findall(r"^(\d+)\. (.*)\.$", notes, flags=re.MULTILINE))
    used = set()
    for line in lines:
        row, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for column, cell in zip(columns, cells, strict=True):
            reason = reasons(row).get(column)
            if reason:
                number = cell.removeprefix("no (").removesuffix(")")
                used.add(number)
                words = texts[number].replace("this base", f"objective.base={row}")
                assert words.replace("this term", f"objective.terms.{row}") == reason.removesuffix(".")
            else:
                assert cell == ("·" if reason is None else "yes")
    assert used == set(texts), "every note is referred to"
    monkeypatch.setattr("sys.argv", ["ltcore", "composition"])
    assert main.main() == 0
    assert capsys.readouterr().out.strip() == composition.markdown().strip()


def test_the_readme_says_the_same() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    header, _, *lines = re.findall(r"^\|.*\|$", readme.split("## Methods\n")[1].split("\n## ")[0], flags=re.MULTILINE)

    def names(cell: str) -> list[str]:
        return cell.strip().split(", ")

    columns = [names(cell) for cell in header.strip("|").split("|")][1:]
    said = {}
    for line in lines:
        rows, *cells = line.strip("|").split("|")
        for row in names(rows):
            for group, cell in zip(columns, cells, strict=True):
                said |= {(row, column): cell.strip() == "yes" for column in group if column != row}
    true = {(pair.row, pair.column): not pair.reason for pair in PAIRS if " + " not in pair.column}
    shown = {*TERMS, "mixup", "accumulation", "experts", "frozen classifier", "stage 2"}
    assert {column for _, column in said} >= shown
    assert said == {(row, column): goes for (row, column), goes in true.items() if (row, column) in said}
    assert said.keys() >= {(row, column) for row, column in true if column in shown}
