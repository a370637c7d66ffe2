"""Data sets made shard by shard: the bytes of one pass, by any number of processes and after any interruption."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ltcore.data.config import DataConfig
from ltcore.data.datasets import mscoco_glt
from ltcore.data.datasets.broken import BrokenImagesError
from ltcore.data.datasets.dataset import Lists
from ltcore.data.datasets.prepare import make, open_dataset, prepare, write_source
from ltcore.data.datasets.shard_task import ShardTask
from ltcore.data.datasets.shardwise import divided
from ltcore.data.datasets.workspace import KEPT_S, Engine, Run, here
from ltcore.data.shards.reencode import Reencode
from ltcore.data.shards.remarks import BROKEN
from ltcore.storage import cache_root
from tests.coco import write_coco
from tests.data.folders import images, place
from tests.data.nested import file_hashes

pytest_plugins = ["tests.s3"]
T = TypeVar("T")
R = TypeVar("R")
FORK = multiprocessing.get_context("fork")
SIZE = 7
FILES = images("train/cat", "train/dog", "test/cat", "test/dog", count=20)
SPOILED = {f"{folder}/{n}.png": b"no image" for folder in ("train/cat", "test/dog") for n in (3, 11)}


def engine(run: Run) -> Engine:
    """Has the tasks done by ``run``."""

    @contextlib.contextmanager
    def started(_num_images: int) -> Iterator[Run]:
        yield run

    return started


def shuffled(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
    """Does the tasks in another order, as several processes would end them."""
    order = list(tasks)
    random.Random(7).shuffle(order)
    yield from here(order, do)


def two_processes(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
    with ProcessPoolExecutor(2, FORK) as pool:
        given = list(tasks)
        yield from zip(given, pool.map(do, given), strict=True)


def folder(parent: Path) -> DataConfig:
    return DataConfig(uri=place(parent, FILES), imbalance_factor=3)


def packed(parent: Path) -> DataConfig:
    return DataConfig(uri=place(parent, FILES, "zip"), subset_seed=5)


def spoiled(parent: Path) -> DataConfig:
    return DataConfig(uri=place(parent, FILES | SPOILED), max_bad_samples=4)


def table(parent: Path) -> DataConfig:
    root = Path(place(parent, FILES))
    rows = [f"{path},{path.split('/')[1]},{n % 3}" for n, path in enumerate(FILES)]
    (root / "pets.csv").write_text("\n".join(["path,label,attribute", *rows]))
    return DataConfig(uri=str(root / "pets.csv"), val_per_class=3)


def coco(parent: Path) -> DataConfig:
    where, notes = write_coco(parent)
    return DataConfig(uri="mscoco-glt", images=where, annotations=notes, imbalance_factor=4, val_per_class=1)


@pytest.fixture(autouse=True)
def small_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mscoco_glt, "TEST_PER_CLASS", 2)


def in_one_pass(cfg: DataConfig, out: Path, **how: Any) -> dict[str, str]:
    """Writes the samples as they come, which only takes a source that is sound, and returns the hashes of the files."""
    dataset = open_dataset(cfg)
    try:
        write_source(dataset.source(), str(out), seed=cfg.subset_seed, shard_size=SIZE, **how)
    except BrokenImagesError as error:
        dataset.broken = error.found
        write_source(dataset.source(), str(out), seed=cfg.subset_seed, shard_size=SIZE, **how)
    return file_hashes(out)


@pytest.mark.parametrize("source", [folder, packed, spoiled, table, coco])
def test_any_number_of_processes_writes_the_bytes_of_one_pass(
    tmp_path: Path, source: Callable[[Path], DataConfig]
) -> None:
    cfg = source(tmp_path)
    expected = in_one_pass(cfg, tmp_path / "whole")
    assert divided(open_dataset(cfg).source()) is not None
    for name, run in {"here": here, "shuffled": shuffled, "two": two_processes}.items():
        made = make(cfg, str(tmp_path / name), shard_size=SIZE, engine=engine(run))
        assert file_hashes(tmp_path / name) == expected and len(made.split("train").shards) > 1
        assert made.provenance.get(BROKEN, {}).keys() == (SPOILED.keys() if source is spoiled else set())


def test_so_it_does_where_images_are_encoded_anew(tmp_path: Path) -> None:
    how = {"reencode": Reencode(format="webp", short_side=3)}
    expected = in_one_pass(cfg := folder(tmp_path), tmp_path / "whole", **how)
    make(cfg, str(tmp_path / "out"), shard_size=SIZE, engine=engine(two_processes), **how)
    assert file_hashes(tmp_path / "out") == expected


def test_so_it_does_in_a_store(tmp_path: Path, bucket: Any) -> None:
    expected = in_one_pass(cfg := folder(tmp_path), tmp_path / "whole")
    make(cfg, f"{bucket.uri}/out", shard_size=SIZE, engine=engine(two_processes))
    assert {name: bucket.get(f"out/{name}") for name in expected} == {
        name: (tmp_path / "whole" / name).read_bytes() for name in expected
    }
    assert not [path for path in (cache_root() / "building").iterdir() if path.suffix != ".lock"]


def _made_and_held(cfg: DataConfig, out: str, whole: int, turn: int, lists: Lists, end: Connection) -> None:
    turns = itertools.count()

    def held(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
        now = next(turns)
        for number, task in enumerate(tasks):
            if (now, number) == (turn, whole):
                assert isinstance(task, ShardTask)
                (task.folder / "shards" / "train-00099.tar").write_bytes(b"half a shard")
                end.send(str(task.folder))
                time.sleep(600)
            yield task, do(task)

    make(cfg, out, lists=lists, shard_size=SIZE, engine=engine(held))


def killed(cfg: DataConfig, out: Path, whole: int, turn: int = 0, lists: Lists = ()) -> Path:
    """Kills the process that makes a data set after so many shards of a turn; returns the folder that is left."""
    near, far = FORK.Pipe()
    process = FORK.Process(target=_made_and_held, args=(cfg, str(out), whole, turn, lists, far))
    process.start()
    assert near.poll(60), "it never came there"
    left = Path(near.recv())
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not out.exists()
    return left


def counting(done: list[str]) -> Engine:
    def counted(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
        for task, result in here(tasks, do):
            assert isinstance(task, ShardTask)
            done.append(f"{task.split}-{task.number:05d}")
            yield task, result

    return engine(counted)


@pytest.mark.parametrize("damage", ["", "tar", "parquet", "json"])
def test_a_killed_process_costs_no_more_than_the_shards_that_were_open(tmp_path: Path, damage: str) -> None:
    expected = in_one_pass(cfg := folder(tmp_path), tmp_path / "whole")
    left = killed(cfg, tmp_path / "out", 3)
    lost = sorted(path.stem for path in (left / "records").iterdir())
    assert len(lost) == 3
    if damage:
        victim = left / ("records" if damage == "json" else "shards") / f"{lost[0]}.{damage}"
        victim.write_bytes(victim.read_bytes()[:-9] + b"?" + victim.read_bytes()[-8:])
    done, said = list[str](), list[str]()
    make(cfg, str(tmp_path / "out"), shard_size=SIZE, engine=counting(done), progress=said.append)
    assert file_hashes(tmp_path / "out") == expected
    kept = lost[1:] if damage else lost
    assert sorted([*done, *kept]) == sorted(name.removesuffix(".tar") for name in expected if name.endswith(".tar"))
    assert f"continuing: {len(kept)} shards of an interrupted build are whole" in said
    assert not list(tmp_path.glob(".*"))


def test_a_run_continues_its_data_set_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        """Stands for an end of the process."""

    def once(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
        yield next(here(tasks, do))
        raise KilledError

    cfg, said = folder(tmp_path), list[str]()
    with pytest.raises(KilledError):
        prepare(cfg, engine=engine(once))
    uri = prepare(cfg, progress=said.append)
    assert "continuing: 1 shards of an interrupted build are whole" in said
    assert [path.name for path in (cache_root() / "datasets").iterdir() if path.suffix != ".lock"] == [Path(uri).name]
    monkeypatch.setattr("tests.data.datasets.test_shardwise.SIZE", 1000)
    assert file_hashes(Path(uri)) == in_one_pass(cfg, tmp_path / "whole")


def test_broken_images_that_were_found_before_a_kill_are_known_after_it(tmp_path: Path) -> None:
    expected = in_one_pass(cfg := spoiled(tmp_path), tmp_path / "whole")
    killed(cfg, tmp_path / "out", 2, turn=1)  # when all are found, and shards are written without them
    done, said = list[str](), list[str]()
    make(cfg, str(tmp_path / "out"), shard_size=SIZE, engine=counting(done), progress=said.append)
    assert (
        file_hashes(tmp_path / "out") == expected and said.count("photos: writing again without 4 broken images") == 1
    )
    assert len(done) <= sum(name.endswith(".tar") for name in expected) - 2
    left = killed(cfg, tmp_path / "again", 2, turn=1)
    with pytest.raises(BrokenImagesError, match="4 images are broken") as caught:
        make(replace(cfg, max_bad_samples=3), str(tmp_path / "again"), shard_size=SIZE, engine=counting(done := []))
    assert caught.value.found.keys() == SPOILED.keys() and not done and not left.exists()


def _made_with_a_cache(cfg: DataConfig, out: str, cache: str, said: Any, waits: Any) -> None:
    os.environ["LTCORE_CACHE"] = cache

    def slow(tasks: Iterable[T], do: Callable[[T], R], /) -> Iterator[tuple[T, R]]:
        assert waits.wait(60), "nobody waits for whoever came first"
        yield from here(tasks, do)

    def say(text: str) -> None:
        if "waits until" in text:
            waits.set()
            said.put(text)

    make(cfg, out, shard_size=SIZE, engine=engine(slow), progress=say)
    said.put("made")


def test_machines_with_caches_of_their_own_make_one_data_set_in_turn(tmp_path: Path) -> None:
    """They share the place where it will be, and nothing else."""
    expected, said = in_one_pass(cfg := folder(tmp_path), tmp_path / "whole"), FORK.Queue()
    out, waits = str(tmp_path / "out"), FORK.Event()
    machines = [
        FORK.Process(target=_made_with_a_cache, args=(cfg, out, str(tmp_path / name), said, waits))
        for name in ("a", "b")
    ]
    for machine in machines:
        machine.start()
    heard = [said.get(timeout=60) for _ in range(3)]
    for machine in machines:
        machine.join(60)
    assert [machine.exitcode for machine in machines] == [0, 0]
    assert heard.count("made") == 2 and sum("waits until it has ended" in text for text in heard) == 1
    assert file_hashes(tmp_path / "out") == expected and not list(tmp_path.glob(".*"))


def test_changed_images_are_not_continued_with(tmp_path: Path) -> None:
    cfg = folder(tmp_path)
    left = killed(cfg, tmp_path / "out", 2)
    Path(cfg.uri, "train/cat/4.png").write_bytes(FILES["train/dog/4.png"])
    said = list[str]()
    make(cfg, str(tmp_path / "out"), shard_size=SIZE, progress=said.append)
    assert file_hashes(tmp_path / "out") == in_one_pass(cfg, tmp_path / "whole")
    assert left.exists() and not [line for line in said if line.startswith("continuing")]


def test_a_changed_list_is_not_continued_with(tmp_path: Path) -> None:
    cfg, lists = folder(tmp_path), [("train", str(tmp_path / "train.txt"))]
    lines = [f"{path} {path.split('/')[1]}\n" for path in FILES if path.startswith("train/")]
    Path(lists[0][1]).write_text("".join(lines))
    killed(cfg, tmp_path / "out", 2, lists=lists)
    Path(lists[0][1]).write_text("".join(lines[1:]))
    said = list[str]()
    make(cfg, str(tmp_path / "out"), lists=lists, shard_size=SIZE, progress=said.append)
    make(cfg, str(tmp_path / "whole"), lists=lists, shard_size=SIZE)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")
    assert not [line for line in said if line.startswith("continuing")]


@pytest.mark.parametrize("age_s", [KEPT_S - 3600, KEPT_S + 3600])
def test_what_nobody_continues_goes_after_a_week(tmp_path: Path, age_s: float) -> None:
    cfg = folder(tmp_path)
    left = killed(cfg, tmp_path / "out", 2)
    for path in (left, *left.iterdir()):
        os.utime(path, (time.time() - age_s,) * 2)
    make(cfg, str(tmp_path / "other"), shard_size=SIZE)
    assert left.exists() == (age_s < KEPT_S)
