"""From a name, a folder or shards to shards: made once, found again, remade on request, one sentence when impossible."""

import io
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make, prepare, selection_remarks
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError, DataError
from ltcore.storage import cache_root


@pytest.fixture
def images(tmp_path):
    """A flat folder of 3 classes of 20 images."""
    root = tmp_path / "pets"
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
            (root / name / f"{i:02d}.png").write_bytes(out.getvalue())
    return root


def test_shards_are_used_where_they_are(tiny_shards):
    assert prepare(DataConfig(uri=tiny_shards), fresh=True) == tiny_shards


def test_a_folder_is_made_once_and_found_again(images):
    cfg = DataConfig(uri=str(images), val_per_class=2)
    said = []
    uri = prepare(cfg, progress=said.append)
    assert Path(uri).parent == cache_root() / "datasets" and Path(uri).name.startswith("pets-")
    assert any("making pets" in line for line in said) and any("pets: 60 of 60 images" in line for line in said)
    store = ShardStore(uri)
    assert store.manifest.class_counts == {"train": (14,) * 3, "val": (2,) * 3, "test": (4,) * 3}
    for split in ("train", "val", "test"):
        keys, labels = store.keys(split), store.labels(split)
        for key, label, data in zip(keys, labels, store.read_rows(split, np.arange(len(keys))), strict=True):
            assert key.startswith(store.manifest.classes[label]) and (images / f"{key}.png").read_bytes() == data
    made = (Path(uri) / "manifest.json").stat().st_mtime_ns
    said.clear()
    assert prepare(cfg, progress=said.append) == uri and not said
    assert (Path(uri) / "manifest.json").stat().st_mtime_ns == made


def test_fresh_makes_the_same_again(images):
    cfg = DataConfig(uri=str(images))
    uri = prepare(cfg)
    before = read_manifest(uri).hash, (Path(uri) / "manifest.json").stat().st_mtime_ns
    assert prepare(cfg, fresh=True) == uri
    assert read_manifest(uri).hash == before[0]
    assert (Path(uri) / "manifest.json").stat().st_mtime_ns > before[1]


def test_everything_that_matters_changes_the_place_and_nothing_else_does(images):
    base = prepare(DataConfig(uri=str(images)))
    for change in ({"imbalance_factor": 4.0}, {"subset_seed": 1}, {"val_per_class": 3}):
        assert prepare(DataConfig(uri=str(images), **change)) != base
    assert prepare(DataConfig(uri=str(images) + "/", image_size=16, loader="threads", lanes=4)) == base
    assert prepare(DataConfig(uri=f"file://{images}")) == base
    (images / "ant" / "00.png").unlink()
    assert prepare(DataConfig(uri=str(images))) != base


def test_a_root_of_ones_own_is_used(images, tmp_path):
    uri = prepare(DataConfig(uri=str(images)), root=str(tmp_path / "shared"))
    assert Path(uri).parent == tmp_path / "shared" and read_manifest(uri).name == "pets"


def _prepare(path: str, connection):
    said = []
    uri = prepare(DataConfig(uri=path), progress=said.append)
    connection.send((uri, bool(said)))


def test_two_processes_make_it_once(images):
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=_prepare, args=(str(images), child)) for _, child in ends]
    for process in processes:
        process.start()
    results = [parent.recv() for parent, _ in ends]
    for process in processes:
        process.join(60)
    assert results[0][0] == results[1][0]
    assert sorted(made for _, made in results) == [False, True]


def test_make_writes_where_it_is_told_with_the_shard_size(images, tmp_path):
    cfg = DataConfig(uri=str(images), imbalance_factor=4, val_per_class=1)
    manifest = make(cfg, str(tmp_path / "out"), shard_size=5)
    assert manifest.class_counts["train"] == (16, 8, 4) and manifest.provenance["imbalance_factor"] == 4
    assert manifest == read_manifest(str(tmp_path / "out"))
    assert max(shard.count for split in manifest.splits.values() for shard in split.shards) <= 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"uri": "digits-gtl"},
            DataError,
            r"data.uri='digits-gtl': there is nothing. Did you mean digits-glt, mnist-glt\? Accepted",
        ),
        ({"uri": "ftp://host/x"}, ConfigError, "ftp:// is not supported"),
        ({"subset": "legacy", "imbalance_factor": 10.0}, ConfigError, "data.subset='legacy' needs the original order"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(images, change, error, message):
    with pytest.raises(error, match=message):
        prepare(DataConfig(**{"uri": str(images), **change}))


def test_a_failed_attempt_leaves_nothing_behind(images):
    (images / "cat" / "05.png").write_bytes(b"broken")
    cfg = DataConfig(uri=str(images))
    with pytest.raises(DataError, match=r"cat/05.png"):
        prepare(cfg)
    assert not [path for path in (cache_root() / "datasets").iterdir() if path.suffix != ".lock"]
    with pytest.raises(DataError, match=r"cat/05.png"):
        prepare(cfg)


def test_digits_need_no_files_and_lists_do_not_fit_them(tmp_path):
    uri = prepare(DataConfig())
    manifest = read_manifest(uri)
    assert manifest.name == "digits-glt" and manifest.shot_groups == ("many",) * 4 + ("medium",) * 3 + ("few",) * 3
    assert selection_remarks(DataConfig(), manifest) == []
    assert prepare(DataConfig(imbalance_factor=100)) == uri  # documented: its imbalance is its own
    assert selection_remarks(DataConfig(imbalance_factor=100), manifest) == [
        "digits-glt has an imbalance of its own, 20.0: data.imbalance_factor=100 has no effect."
    ]
    with pytest.raises(ConfigError, match="list files name images"):
        make(DataConfig(), str(tmp_path / "out"), lists=[("train", "x")])
    with pytest.raises(ConfigError, match=r"data\.val_per_class=19: digits-glt has room for at most 18"):
        prepare(DataConfig(val_per_class=19))
