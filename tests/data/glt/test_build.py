"""A benchmark out of images: the same bytes from any listing and any order of tasks, disjoint splits, interruptions."""

import os
import random
import threading
from dataclasses import replace

import numpy as np
import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets.broken import BrokenImagesError
from ltcore.data.datasets.shard_task import ShardTask
from ltcore.data.datasets.workspace import here, workspace
from ltcore.data.glt.choices import GltChoices
from ltcore.data.glt.items import Items
from ltcore.data.glt.pool import open_pool
from ltcore.data.glt.workspace import WITHOUT_ATTRIBUTE, build, identity_of
from ltcore.data.shards.manifest import read_manifest
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.remarks import ATTRIBUTE_COUNTS, BROKEN
from ltcore.data.shards.validate import check_dataset, describe
from ltcore.errors import ConfigError, DataError
from tests.data.folders import place
from tests.data.glt_bar import no_bar
from tests.data.nested import file_hashes, flat_folder, nested_folder, nested_pool


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return nested_folder(tmp_path_factory.mktemp("images"))


def built(pool, choices, out, run=here, **options):
    return build(pool, choices, str(out), run, bar=no_bar, **options)


def shuffled(tasks, do, /):
    """Does the tasks in another order, as several processes would end them."""
    order = list(tasks)
    random.Random(7).shuffle(order)
    yield from here(order, do)


def test_the_same_images_and_seed_give_the_same_bytes(root, tmp_path, monkeypatch):
    monkeypatch.setattr("ltcore.data.glt.build.SUMMED", 5)  # of which other processes take several, for mean and std
    pool, choices = nested_pool(root)
    built(pool, choices, tmp_path / "a")
    random_order = sorted(pool.items, key=lambda item: item.path[::-1])
    listed = replace(pool, items=Items.of(random_order).by_key())
    built(listed, choices, tmp_path / "b", shuffled)
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    other, choices = nested_pool(root, seed=1)
    built(other, choices, tmp_path / "c")
    assert file_hashes(tmp_path / "a") != file_hashes(tmp_path / "c")


def test_a_zip_gives_the_bytes_of_its_folder(root, tmp_path):
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}
    names = list(files)
    random.Random(3).shuffle(names)
    archive = place(tmp_path, {name: files[name] for name in names}, "zip", "animals")
    pool, choices = nested_pool(root)
    built(pool, choices, tmp_path / "folder")
    packed, _ = nested_pool(archive)
    built(packed, choices, tmp_path / "zip")
    assert file_hashes(tmp_path / "folder") == file_hashes(tmp_path / "zip")


def test_splits_are_disjoint_balanced_as_they_should_be_and_sound(root, tmp_path):
    pool, choices = nested_pool(root, test_glt=12)
    plan, made = built(pool, choices, tmp_path / "out")
    assert check_dataset(str(tmp_path / "out")) == []
    store = ShardStore(str(tmp_path / "out"))
    keys = {split: set(store.keys(split)) for split in store.manifest.splits}
    assert len(keys["train"] & keys["train_cbl"]) == plan.overlap == made.provenance["train_and_train_cbl_share"]
    apart = [keys["train"] | keys["train_cbl"], *(keys[name] for name in keys if not name.startswith("train"))]
    assert len(set().union(*apart)) == sum(map(len, apart)) and len(apart) == 5
    tables = {}
    for split in keys:
        tables[split] = np.zeros((3, 3), int)
        np.add.at(tables[split], (store.labels(split), store.attributes(split)), 1)
        assert tables[split].tolist() == made.provenance[ATTRIBUTE_COUNTS][split]
    assert (tables["test_gbl"] == tables["test_gbl"][0, 0]).all() and (tables["val"] == tables["val"][0, 0]).all()
    assert len(set(tables["train_cbl"].sum(1))) == 1 and len(set(tables["test_cbl"].sum(1))) == 1
    assert tables["train"].argmax(1).tolist() == [0, 1, 2]
    assert tables["train"].sum(1).tolist() == list(plan.sizes.train_C)
    assert ATTRIBUTE_COUNTS not in describe(str(tmp_path / "out"))
    assert made.shot_rule == "glt" and made.shot_groups == ("many", "medium", "few")


def test_validation_has_the_tails_of_training_where_that_is_asked_for(root, tmp_path):
    pool, choices = nested_pool(root, val_glt=20)
    plan, made = built(pool, choices, tmp_path / "out")
    assert check_dataset(str(tmp_path / "out")) == []
    counts_CA = plan.counts("val")
    assert counts_CA.sum(1).tolist() == list(plan.sizes.val_C) and counts_CA.sum() == 20
    assert made.provenance["val_glt_images"] == 20 and "val_per_class" not in made.provenance
    assert counts_CA.argmax(1).tolist() == plan.counts("train").argmax(1).tolist()
    train, held_out = (set(plan.splits[split].tolist()) for split in ("train", "val"))
    assert not train & held_out


class Killed(BaseException):
    """Stands for an end of the process."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["", "tar", "parquet", "pipe"])
def test_an_interrupted_build_writes_only_what_is_not_whole(root, tmp_path, damage):
    pool, choices = nested_pool(root)
    built(pool, choices, tmp_path / "whole")

    def killed(tasks, do, /):
        for number, task in enumerate(tasks):
            if number == 4:
                task.folder.joinpath("shards", "train-00099.tar").write_bytes(b"half a shard")
                raise Killed
            yield task, do(task)

    with pytest.raises(Killed):
        built(pool, choices, tmp_path / "out", killed)
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.glob(".out.building-*")
    if damage == "pipe":
        victim = left / "shards" / "train-00000.tar"
        victim.unlink()
        os.mkfifo(victim)  # to open it would wait for a writer for ever
    elif damage:
        victim = sorted((left / "shards").glob(f"*[0-9].{damage}"))[0]
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    done, said = [], []

    def counted(tasks, do, /):
        for task, result in here(tasks, do):
            done.append(task)
            yield task, result

    plan, _ = built(pool, choices, tmp_path / "out", counted, progress=said.append)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")
    whole = 3 if damage else 4
    assert sum(isinstance(task, ShardTask) for task in done) == sum(1 for _ in plan.tasks(tmp_path, "out")) - whole
    assert said == [f"continuing: {whole} shards of an interrupted build are whole"]
    assert not list(tmp_path.glob(".*"))


def test_another_choice_does_not_continue_a_build(root, tmp_path):
    pool, choices = nested_pool(root)

    def killed(tasks, do, /):
        yield next(here(tasks, do))
        raise Killed

    with pytest.raises(Killed):
        built(pool, choices, tmp_path / "out", killed)
    said = []
    other, changed = nested_pool(root, seed=5)
    built(other, changed, tmp_path / "out", progress=said.append)
    assert said == [] and len(list(tmp_path.glob(".out.building-*"))) == 1


def test_a_build_that_cannot_start_leaves_nothing(root, tmp_path):
    pool, choices = nested_pool(root, largest=500)
    with pytest.raises(DataError, match="--max-class"):
        built(pool, choices, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("years")
    with pytest.raises(ConfigError, match=r"thesis\.doc"):
        built(pool, choices, tmp_path / "full")
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


@pytest.mark.parametrize("text", ['{"a": "x"}', '{"a": 3}', "[", "[]", '{"result": {"a": ["x", "y"]}}'])
def test_a_damaged_list_of_broken_images_is_made_again(tmp_path, text):
    root = nested_folder(tmp_path)
    (root / "bee" / "night" / "3.png").write_bytes(b"no image")
    pool, choices = nested_pool(root)
    built(pool, choices, tmp_path / "whole", max_bad_samples=1)

    def killed(tasks, do, /):
        yield next(here(tasks, do))
        raise Killed

    with pytest.raises(Killed):
        built(pool, choices, tmp_path / "out", killed, max_bad_samples=1)
    (left,) = tmp_path.glob(".out.building-*")
    (left / "broken.json").write_text(text)
    built(pool, choices, tmp_path / "out", max_bad_samples=1)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_broken_images_are_all_named_or_left_out_as_if_they_were_not_there(tmp_path):
    folder = nested_folder(tmp_path)
    bad = [folder / "ant" / "day" / "3.png", folder / "bee" / "dusk" / "5.png"]
    for file in bad:
        file.write_bytes(b"no image at all")
    pool, choices = nested_pool(folder)
    with pytest.raises(BrokenImagesError) as caught:
        built(pool, choices, tmp_path / "out")
    assert set(caught.value.found) == {"ant/day/3.png", "bee/dusk/5.png"}
    _, made = built(pool, choices, tmp_path / "out", max_bad_samples=2)
    assert set(made.provenance[BROKEN]) == {"ant/day/3.png", "bee/dusk/5.png"}
    for file in bad:
        file.unlink()
    sound, _ = nested_pool(folder)
    built(sound, choices, tmp_path / "sound")
    without = file_hashes(tmp_path / "sound")
    with_them = file_hashes(tmp_path / "out")
    del without["manifest.json"], with_them["manifest.json"]
    assert with_them == without


def test_shards_are_a_source_too_and_images_without_attribute_are_left_out(root, tmp_path):
    pool, choices = nested_pool(root)
    built(pool, choices, tmp_path / "first")
    _, unused = open_pool(DataConfig(uri=str(tmp_path / "first")), GltChoices())
    assert set(unused) == {"train_cbl", "val", "test_cbl", "test_gbl"}
    splits = ("train", "val", "test_cbl", "test_gbl")
    again, _ = open_pool(DataConfig(uri=str(tmp_path / "first")), GltChoices(pool=splits))
    assert again.attributes == pool.attributes
    unknown = np.where(np.arange(len(again.items)) < 3, -1, again.attribute_ids)
    lost = replace(again, items=again.items.with_attributes(unknown))
    small = GltChoices(imbalance_factor=2, test=3, val=3)
    _, made = built(lost, small, tmp_path / "second")
    assert made.provenance[WITHOUT_ATTRIBUTE] == 3
    first, second = (ShardStore(str(tmp_path / name)) for name in ("first", "second"))

    def images(store, split):
        keys = store.keys(split)
        return dict(zip(keys, store.read_rows(split, np.arange(len(keys))), strict=True))

    originals = {f"{split}/{key}": image for split in splits for key, image in images(first, split).items()}
    assert images(second, "train").items() <= originals.items()


def test_splits_of_the_source_are_chosen_by_name(tmp_path):
    folder = flat_folder(tmp_path)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    split = place(
        tmp_path, {f"{('train', 'test')[n % 4 == 0]}/{name}": files[name] for n, name in enumerate(sorted(files))}
    )
    default, unused = open_pool(DataConfig(uri=split), GltChoices())
    assert {item.path.split("/")[0] for item in default.items} == {"train"} and set(unused) == {"test"}
    both, unused = open_pool(DataConfig(uri=split), GltChoices(pool=("train", "test")))
    assert len(both.items) == len(files) and not unused
    with pytest.raises(ConfigError, match=r"--pool tset: there is no such split.*test"):
        open_pool(DataConfig(uri=split), GltChoices(pool=("tset",)))


def test_an_earlier_benchmark_is_replaced(root, tmp_path):
    pool, choices = nested_pool(root)
    _, first = built(pool, choices, tmp_path / "out")
    other, changed = nested_pool(root, seed=5)
    _, second = built(other, changed, tmp_path / "out")
    assert first.hash != second.hash == read_manifest(str(tmp_path / "out")).hash


def test_a_second_build_of_the_same_says_that_it_waits(tmp_path):
    pool, choices = nested_pool(nested_folder(tmp_path))
    said, waits = list[str](), threading.Event()

    def second() -> None:
        with workspace(
            str(tmp_path / "out"), identity_of(pool, choices), lambda text: (said.append(text), waits.set())
        ):
            said.append("began")

    other = threading.Thread(target=second)
    with workspace(str(tmp_path / "out"), identity_of(pool, choices), said.append):
        other.start()
        assert waits.wait(10)
        assert said == [
            f"another process builds {tmp_path / 'out'} with the same choices; this one waits until it has ended"
        ]
    other.join()
    assert said[1:] == ["began"]
