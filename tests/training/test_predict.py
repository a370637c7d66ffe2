"""From a checkpoint to predictions and metrics: what is read, in which portions, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ltcore
from ltcore.cli import evaluate as assess
from ltcore.cli import parsers as cli
from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import prepare
from ltcore.data.shards.manifest import read_manifest
from ltcore.errors import CheckpointError, ConfigError, DataError, NumericError
from ltcore.training import checkpoint as ckpt
from ltcore.training.predict import evaluate
from tests.conftest import tiny_samples
from tests.s3 import Bucket
from tests.shards import write_dataset
from tests.training.runs import run, stage2_run, tiny_run

pytest_plugins = ["tests.s3"]


@pytest.fixture(scope="module")
def trained(tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs; copy it before you change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(tiny_run(train__epochs=2), tiny_shards, folder)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def assessed(*words: Any) -> None:
    assess.run(cli.read_evaluate("", [str(word) for word in words]))


def test_weights_too_large_to_compute_with_predict_nothing(copy: Path, tiny_shards: str) -> None:
    for file in copy.rglob("model.pt"):
        weights = torch.load(file, weights_only=True)
        weights["heads.0.weight"].fill_(3e38)
        torch.save(weights, file)
    predictor = ltcore.load(copy)
    with pytest.raises(NumericError, match=r"best-\d+ predicts numbers that are not finite"):
        predictor(torch.full((1, 3, 16, 16), 200, dtype=torch.uint8))
    with pytest.raises(NumericError, match="predicts numbers that are not finite"):
        evaluate(predictor, tiny_shards, [], [])


# ---- metrics


def test_every_data_set_and_split_has_a_metrics_file_of_its_own(copy: Path, tiny_shards: str) -> None:
    assessed(copy, "--data", tiny_shards)
    before = {file.name: file.read_bytes() for file in (copy / "metrics").iterdir()}
    hash8 = read_manifest(tiny_shards).hash[:8]
    assert list(before) == [f"tiny-{hash8}-test.json"]
    assessed(copy, "--data", tiny_shards, "--split", "train", "--split", "val")
    after = {file.name: file.read_bytes() for file in (copy / "metrics").iterdir()}
    assert after.keys() == {f"tiny-{hash8}-{split}.json" for split in ("test", "train", "val")}
    assert after[f"tiny-{hash8}-test.json"] == before[f"tiny-{hash8}-test.json"]
    written = json.loads(after[f"tiny-{hash8}-train.json"])
    assert list(written["splits"]) == ["train"] and written["data_hash"] == read_manifest(tiny_shards).hash
    assert written["checkpoint"] == str(ckpt.read(copy).path)


def rewrite(uri: Path, classes: list[str], keep: Callable[[int], bool] = lambda label: True) -> str:
    """The tiny test split under another list of classes, beside any training split."""
    names = ["ant", "bee", "cat", "dog"]

    def rows(split: str) -> Any:
        for sample in tiny_samples(split):
            name = names[sample.label]
            if name in classes and (split == "train" or keep(sample.label)):
                yield type(sample)(sample.key, sample.image, sample.ext, classes.index(name))

    write_dataset(
        str(uri),
        name=uri.name,
        classes=classes,
        attributes=[],
        splits={split: rows(split) for split in ("train", "test")},
        image_size=16,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=1,
        shot_rule="rank",
        provenance={},
    )
    return str(uri)


@pytest.mark.parametrize("classes", [["dog", "ant", "cat", "bee"], ["cat", "ant"]])
def test_classes_go_by_name_in_any_order_and_number(trained: Path, tmp_path: Path, classes: list[str]) -> None:
    predictor = ltcore.load(trained)
    uri = rewrite(tmp_path / "other", classes)
    rows = [sample.image for sample in tiny_samples("test") if predictor.classes[sample.label] in classes]
    truth = [predictor.classes[s.label] for s in tiny_samples("test") if predictor.classes[s.label] in classes]
    hits = [name == wanted for (name, _), wanted in zip(predictor.predict(rows), truth, strict=True)]
    found = evaluate(predictor, uri, ["test"], [])
    assert found["splits"]["test"]["top1"] == pytest.approx(sum(hits) / len(hits))
    assert found["classes_present"] == {"test": len(classes)}


def test_other_data_are_ranked_by_the_training_images_of_the_run(trained: Path, tmp_path: Path) -> None:
    """Day is the majority of all classes; the other data name it otherwise, have it last, or do not know it."""
    predictor = ltcore.load(trained)
    counts_CA = predictor.attribute_counts.table_CA()
    assert predictor.attributes == ("day", "night") and (counts_CA[:, 0] >= counts_CA[:, 1]).all()

    def ranked(*names: str) -> dict[str, Any]:
        """Metrics of the test split, whose attributes 0 and 1 are called so, whatever this data's training split has."""
        uri = str(tmp_path / "-".join(names))
        splits = {"train": tiny_samples("val"), "test": tiny_samples("test")}
        write_dataset(uri, classes=predictor.classes, attributes=names, splits=splits, image_size=16, shot_rule="rank")
        return evaluate(predictor, uri, ["test"], [])["splits"]["test"]

    same, swapped, unknown = ranked("day", "night"), ranked("night", "day"), ranked("dawn", "dusk")
    assert same["attribute_rank/majority"] == swapped["attribute_rank/rare"] is not None
    assert same["attribute_rank/rare"] == swapped["attribute_rank/majority"] is not None
    assert unknown["attribute_rank/majority"] is None and unknown["worst_group"] == same["worst_group"]


def test_fewer_classes_are_said_and_unknown_ones_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assessed(trained, "--data", rewrite(tmp_path / "less", ["cat", "ant"]), "--output", tmp_path / "m.json")
    assert "test: 2 of 4 classes have images; the metrics are of these alone." in capsys.readouterr().out
    other = rewrite(tmp_path / "other", ["ant", "eel"][:1])
    manifest = json.loads((Path(other) / "manifest.json").read_text())
    manifest["classes"] = ["eel"]
    (Path(other) / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        CheckpointError, match=r"does not know 1 of the 1 classes of .*, the first is 'eel'; it knows ant, bee"
    ):
        evaluate(ltcore.load(trained), other, [], [])


def test_data_without_a_test_split_are_refused_instead_of_an_empty_table(trained: Path, tmp_path: Path) -> None:
    uri = rewrite(tmp_path / "other", ["ant", "bee", "cat", "dog"], keep=lambda label: False)
    manifest = json.loads((Path(uri) / "manifest.json").read_text())
    for section in ("splits", "class_counts"):
        manifest[section].pop("test", None)
    (Path(uri) / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"other has no test split: there are train\. Choose one with --split"):
        evaluate(ltcore.load(trained), uri, [], [])


def test_the_data_of_training_are_followed_only_while_they_are_the_same(
    copy: Path, tiny_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def points_to(uri: str) -> None:
        for meta in copy.rglob("meta.json"):
            fields = json.loads(meta.read_text())
            fields["config"]["data.uri"] = uri
            meta.write_text(json.dumps(fields))

    points_to(tiny_shards)
    assessed(copy)
    assert f"evaluating on {tiny_shards}" in capsys.readouterr().err
    other = rewrite(tmp_path / "other", ["ant", "bee", "cat", "dog"])
    points_to(other)
    with pytest.raises(ConfigError, match=r"they have changed since\. .*give --data .*/other"):
        assessed(copy)
    assessed(copy, "--data", other)
    points_to("/home/somebody/photos")
    with pytest.raises(
        DataError, match=r"there is nothing.*what the checkpoint was trained on: give the data with --data"
    ):
        assessed(copy)


def test_a_split_without_an_image_is_refused_and_one_of_a_single_class_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = ["ant", "bee", "cat", "dog"]
    with pytest.raises(DataError, match=r"empty: split 'test' holds no image, so there is nothing to measure"):
        assessed(trained, "--data", rewrite(tmp_path / "empty", classes, keep=lambda label: False))
    one = rewrite(tmp_path / "one", classes, keep=lambda label: label == 2)
    assessed(trained, "--data", one, "--output", tmp_path / "m.json")
    assert "test: 1 of 4 classes have images; the metrics are of these alone." in capsys.readouterr().out


def test_a_test_split_that_was_made_out_of_the_images_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sample in tiny_samples("test"):
        file = tmp_path / "flat" / ["ant", "bee", "cat", "dog"][sample.label] / f"{sample.key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sample.image)
    assessed(trained, "--data", tmp_path / "flat", "--output", tmp_path / "m.json")
    told = capsys.readouterr().err
    assert "flat came without a test folder: its test split is 1/5 of each class by keyed hash" in told
    images = len(list((tmp_path / "flat").rglob("*.png")))
    assert (
        f" of {images} images. To measure all of them, put the folders of classes into one that is called test" in told
    )


# ---- damage


def test_weights_that_are_not_finite_are_refused_wherever_a_checkpoint_is_read(
    copy: Path, tiny_shards: str, tmp_path: Path
) -> None:
    for file in copy.rglob("model.pt"):
        weights = torch.load(file, weights_only=True)
        weights["heads.0.weight"][0, 0] = math.nan
        torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"model.pt holds weights that are not finite \(heads.0.weight\)"):
        ltcore.load(copy)
    with pytest.raises(CheckpointError, match="not finite"):
        run(tiny_run(train__init_from=str(copy)), tiny_shards, tmp_path / "second")
    with pytest.raises(CheckpointError, match="not finite"):
        run(stage2_run(copy, "ncm"), tiny_shards, tmp_path / "third")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("std", [0.2, 0.0, 0.2], r"std is \[0.2, 0.0, 0.2\], expected three numbers from 1e-06 to"),
        ("std", [0.2, math.nan, 0.2], "three numbers from"),
        ("std", [0.2, 1e-320, 0.2], "three numbers from"),
        ("std", 5, "three numbers from"),
        ("mean", [0.5, math.inf, 0.5], "three numbers from"),
        ("mean", [0.5, 1e308, 0.5], "three numbers from"),
        ("mean", [0.5, 0.5], "three numbers from"),
        ("image_size", 20000, "from 1 to 4096"),
        ("image_size", "16", "from 1 to 4096"),
        ("image_size", True, "from 1 to 4096"),
        ("classes", [], "names"),
        ("classes", [1, 2, 3, 4], "names"),
        ("classes", ["ant", "bee", "ant", "dog"], "names that differ"),
        ("shot_groups", ["many", "most", "few", "few"], "words out of many, medium, few"),
        ("shot_groups", ["many"], "4 classes and 1 shot_groups, expected one per class"),
        ("class_prior", [0.5, 0.5], "4 classes and 2 class_prior, expected one per class"),
        ("class_prior", [0.5, 0.5, 0.0, 0.0], "a share above 0 for each class"),
        ("class_prior", [0.5, math.nan, 0.2, 0.3], "a share above 0 for each class"),
        ("class_prior", "many", "a share above 0 for each class"),
        ("attributes", [1], "names"),
        ("attribute_counts", [[1, -1]] * 4, "for each class a whole number for each attribute"),
        ("attribute_counts", [[1, 2]], "4 classes and 1 attribute_counts, expected one per class"),
        ("attribute_counts", [[1, 2, 3]] * 4, "rows of other lengths than the 2 attributes"),
        ("attribute_counts", [{"0": 1, "1": -1}] * 4, "for each class a whole number for each attribute, or for those"),
        ("attribute_counts", [{"0": 1}, {"2": 1}, {}, {}], "has the attribute '2', expected numbers below 2"),
        ("attribute_counts", [{"01": 1}] * 4, "has the attribute '01', expected numbers below 2"),
        ("step", -1, "step is -1, expected a whole number from 0 to"),
        ("epoch", 10**30, "expected a whole number from 0 to"),
        ("metrics", 5, "metrics is 5, expected names with values"),
        ("config", [], r"config is \[\], expected dotted keys with values"),
    ],
)
def test_a_damaged_field_is_named_with_its_file(copy: Path, field: str, value: Any, expected: str) -> None:
    for meta in copy.rglob("meta.json"):
        meta.write_text(json.dumps({**json.loads(meta.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=rf"meta.json.*{expected}"):
        ltcore.load(copy)


@pytest.mark.parametrize("key", ["model.num_experts", "model.expert_width"])
def test_a_network_of_another_size_is_no_crash(copy: Path, key: str) -> None:
    for meta in copy.rglob("meta.json"):
        fields = json.loads(meta.read_text())
        fields["config"][key] = 20000 if key == "model.num_experts" else 0.5
        if key == "model.expert_width":
            fields["config"]["model.num_experts"] = 3
        meta.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"meta.json: |does not hold the network of its meta.json"):
        ltcore.load(copy)


def test_a_record_that_unpacks_to_gigabytes_is_refused_unread(copy: Path) -> None:
    file = next(copy.rglob("best-*/model.pt"))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/0", bytes(2**24))
    with pytest.raises(CheckpointError, match=r"model.pt cannot be read .*its \d+ bytes would unpack to 16777216"):
        ltcore.load(copy)


# ---- object stores


def upload(bucket: Bucket, folder: Path, prefix: str) -> str:
    for file in (f for f in folder.rglob("*") if f.is_file()):
        bucket.put(f"{prefix}/{file.relative_to(folder)}", file.read_bytes())
    return f"{bucket.uri}/{prefix}"


def test_of_a_remote_run_only_what_is_needed_is_fetched_and_nothing_stays(
    trained: Path, bucket: Bucket, tiny_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, temporary = upload(bucket, trained, "run"), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assessed(uri, "--data", tiny_shards)
    predictor = ltcore.load(uri)
    run(stage2_run(uri, "ncm"), tiny_shards, tmp_path / "second")
    run(tiny_run(train__init_from=uri, train__epochs=1), tiny_shards, tmp_path / "third")
    assert list(temporary.iterdir()) == []
    assert bucket.reads("state.pt") == 0 and bucket.reads("metrics.jsonl") == 0
    assert predictor.place == f"{uri}/{ckpt.read(trained).path.relative_to(trained)}"
    (name,) = bucket.names("run/metrics/")
    assert json.loads(bucket.get(name))["checkpoint"] == predictor.place


def test_a_remote_checkpoint_may_be_named_and_what_is_none_is_refused(trained: Path, bucket: Bucket) -> None:
    uri = upload(bucket, trained, "run")
    last = ckpt.find(trained / "checkpoints")
    assert last is not None
    named = ltcore.load(f"{uri}/checkpoints/{last.path.name}")
    assert named.place == f"{uri}/checkpoints/{last.path.name}"
    with pytest.raises(CheckpointError, match=f"^{bucket.uri}/nothing is not a checkpoint"):
        ltcore.load(f"{bucket.uri}/nothing")
    meta = f"run/checkpoints/{last.path.name}/meta.json"
    bucket.put(meta, json.dumps({**json.loads(bucket.get(meta)), "image_size": 0}).encode())
    with pytest.raises(CheckpointError, match=f"^{bucket.uri}/{meta}: image_size is 0"):  # not the copy, which is gone
        ltcore.load(f"{uri}/checkpoints/{last.path.name}/")


def test_a_folder_with_a_test_alone_and_fewer_classes_is_evaluated_and_not_trained_on(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor, hits, total = ltcore.load(copy), 0, 0
    for sample in tiny_samples("test"):
        name = predictor.classes[sample.label]
        if name in ("dog", "bee"):
            file = tmp_path / "new" / "Test" / name / f"{sample.key}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample.image)
            hits, total = hits + (predictor.predict(file)[0][0] == name), total + 1
    assessed(copy, "--data", tmp_path / "new", "--output", tmp_path / "m.json")
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["splits"]["test"]["top1"] == pytest.approx(hits / total)
    assert "test: 2 of 4 classes have images" in capsys.readouterr().out
    with pytest.raises(DataError, match="new has test but no train folder"):
        prepare(DataConfig(uri=str(tmp_path / "new")))
