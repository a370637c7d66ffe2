"""Predictions by the command line: lines or a table, an exit code, and a last line that says how many failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import ltcore
from ltcore.cli import export_parsers, parsers
from ltcore.cli.args import EvaluateArgs
from ltcore.cli.evaluate import find_data
from ltcore.cli.export import run_card, run_export
from ltcore.cli.parsers import read_evaluate
from ltcore.cli.predict import predict
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError
from ltcore.storage import read_jsonl
from tests.conftest import png
from tests.training.runs import run, tiny_run


@pytest.fixture(scope="module")
def trained(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "tiny"
    run(tiny_run(train__epochs=1, data__uri=tiny_shards), tiny_shards, folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(6):
        file = tmp_path / "photos" / ("ant", "dog")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(rng) if n != 3 else b"no image")
    return tmp_path / "photos"


def predicted(*words: Any) -> int:
    return predict(parsers.read_evaluate("", [str(word) for word in words]))


def test_without_output_there_is_a_line_for_each_image_that_can_be_read(
    trained: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predicted(trained, photos, "--top-k", 2) == 1
    said = capsys.readouterr()
    files = [photos / name for name in ("ant/0.png", "ant/2.png", "ant/4.png", "dog/1.png", "dog/5.png")]
    tops = ltcore.load(trained).predict_top(files, 2)
    expected = ["\t".join([str(f), *(f"{n}\t{p:.4f}" for n, p in top)]) for f, top in zip(files, tops, strict=True)]
    assert said.out.splitlines() == expected
    assert "3.png: the image cannot be decoded" in said.err
    assert (
        said.err.splitlines()[-1].endswith("6 images") is False and "5 predicted, 1 failed" in said.err.splitlines()[-1]
    )
    assert predicted(trained, files[0]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_becomes_a_table_with_labels_and_the_reason_of_failures(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    assert predicted(trained, photos, "--output", out, "--logits") == 1
    rows = pq.read_table(out).to_pylist()
    assert [row["label"] for row in rows] == ["ant"] * 3 + ["dog"] * 3
    assert [bool(row["error"]) for row in rows] == [False] * 3 + [False, True, False]
    assert len(rows[0]["logits"]) == 4 and rows[4]["logits"] is None
    said = capsys.readouterr().err.splitlines()
    assert "6 images" in said[-2] and "5 predicted, 1 failed (column error), the first: " in said[-2]
    assert said[-1] == f"Predictions: {out}"


def test_shards_are_predicted_by_split_however_they_are_named(
    trained: Path, tiny_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [tmp_path / f"{n}.jsonl" for n in range(3)]
    for out, words in zip(outs, ([tiny_shards], ["--data", tiny_shards], []), strict=True):
        assert predicted(trained, *words, "--output", out) == 0  # the data of training where none are named
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    store = ShardStore(tiny_shards)
    rows = read_jsonl(outs[0])
    assert [row["file"] for row in rows] == store.keys("test") and {row["split"] for row in rows} == {"test"}
    assert predicted(trained, tiny_shards, "--split", "val", "--split", "train", "--output", outs[0]) == 0
    assert [row["file"] for row in read_jsonl(outs[0])] == store.keys("val") + store.keys("train")


def test_what_cannot_be_meant_is_refused(trained: Path, tiny_shards: str, photos: Path) -> None:
    for words, reason in (
        ([tiny_shards, photos], "holds shards. Give them alone, or with --data"),
        ([photos, "--split", "test"], r"photos holds no shards\. Give it with --data to have it split"),
        ([photos, "--engine", "ray"], "--engine ray predicts shards, and .*photos holds none"),
        ([tiny_shards, "--split", "tset"], "split 'tset' is not in"),
    ):
        with pytest.raises(ConfigError, match=reason):
            predicted(trained, *words)


def test_an_interruption_leaves_no_file(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("ltcore.training.predictions.predicted", interrupted)
    assert predicted(trained, photos, "--output", tmp_path / "out.csv") == 130
    assert not list(tmp_path.glob("*out.csv"))
    assert capsys.readouterr().err.splitlines()[-1].endswith("out.csv was not written")


def test_an_export_is_checked_on_real_images_and_has_a_card(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export(export_parsers.read_export("", [str(trained), f"{tmp_path}/m.pt2"]))
    said = capsys.readouterr().out
    assert "Checked on 8 random images and 14 images of test" in said and f"Model card: {tmp_path}/m.md" in said
    assert "## The file m.pt2" in (tmp_path / "m.md").read_text()
    run_card(export_parsers.read_card("", [str(trained), "--output", f"{tmp_path}/card.md"]))
    assert (tmp_path / "card.md").read_text().startswith("# tiny\n")
    assert "Model card" in capsys.readouterr().out


def test_keys_beside_the_data_say_how_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors about other data than those of training advise such keys."""
    monkeypatch.delenv("LTCORE_DATA", raising=False)
    rng = np.random.default_rng(0)
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(png(rng))
    rows = [f"{n}.png,{'cat' if n % 2 else 'dog'},{n}" for n in range(6)]
    (tmp_path / "new.csv").write_text("\n".join(["image,beast,weight", *rows]))
    words = ["run", "data.label_column=beast", "--data", str(tmp_path / "new.csv")]
    args = read_evaluate(None, words)
    assert isinstance(args, EvaluateArgs) and args.images == () and not args.predicts
    predictor: Any = SimpleNamespace(config=tiny_run())
    uri = find_data(predictor, args.data, reading=args.reading)
    assert read_manifest(uri).classes == ("cat", "dog")
    for wrong, said in (
        (["run", "data.uri=x", "--data", "y"], "data.uri does not say how data are read; expected data.classes_from"),
        (["run", "data.label_column=beast"], "data.label_column=beast says how the data of --data are read: give them"),
        ([*words, "data.label_column=x"], "a key is given twice: data.label_column=beast data.label_column=x"),
        ([*words, "1.png"], "IMAGES are predicted as they are"),
        ([*words, "--protocols"], "data.label_column=beast does not go with --protocols, which takes runs"),
    ):
        with pytest.raises(SystemExit):
            read_evaluate(None, wrong)
        assert said in " ".join(capsys.readouterr().err.split())


def test_the_package_takes_them_as_well(trained: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "3.png").unlink()
    rows = [f"photos/{('ant', 'dog')[n % 2]}/{n}.png,{('ant', 'dog')[n % 2]}" for n in (0, 1, 2, 4, 5)]
    (tmp_path / "new.csv").write_text("\n".join(["image,beast", *rows]))
    found = ltcore.evaluate(trained, tmp_path / "new.csv", verbose=False, **{"data.label_column": "beast"})
    assert found.metrics["test"]["top1"] is not None
    page = ltcore.retrieve(
        trained, data=tmp_path / "new.csv", verbose=False, neighbors=1, **{"data.label_column": "beast"}
    )
    assert page.num_images
    for reading, said in (
        ({"data.beast": "x"}, "data.beast does not say how data are read; expected data.classes_from"),
        ({"data.label_column": "beast"}, "data.label_column says how other data are read: give them as data"),
    ):
        with pytest.raises(ConfigError, match=said):
            ltcore.evaluate(trained, None, verbose=False, **reading)
