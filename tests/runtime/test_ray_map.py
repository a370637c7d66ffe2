"""Tasks on Ray: every result once, errors as themselves, and a benchmark with the bytes of one process."""

import contextlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import ray

from ltcore.data.config import DataConfig
from ltcore.data.datasets.prepare import make
from ltcore.data.datasets.workspace import here
from ltcore.data.glt.workspace import build
from ltcore.errors import DataError, StallError
from ltcore.runtime import ray_map, ray_task
from ltcore.runtime.ray_map import on_ray, ray_tasks
from tests.data.glt_bar import no_bar
from tests.data.nested import file_hashes, nested_folder, nested_pool
from tests.paths import ROOT


def square(number):
    if number == 13:
        raise DataError("13 is unlucky")
    return number * number


@pytest.fixture
def standing(monkeypatch):
    """A Ray whose tasks end after ten hours, of which each look takes ten minutes; what it canceled."""
    clock, canceled = [0.0], []

    def wait(refs, num_returns, timeout=float("inf")):
        clock[0] += min(timeout, 1.0) * 600
        return ([refs[0]], refs[1:]) if clock[0] > 36_000 else ([], refs)

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda do, number: number))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: task)
    monkeypatch.setattr(ray, "wait", wait)
    for name in ("cluster_resources", "available_resources"):
        monkeypatch.setattr(ray, name, lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray_map, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(ray_map, "_own_node", lambda: ("1" * 56, 1.0, 2.0**40))
    monkeypatch.setattr(ray_task, "cancel", canceled.extend)
    monkeypatch.setattr(ray_task, "result_of", lambda ref, _: ref)
    return canceled


WAITED = "none of 2 tasks has ended for 10 min; needed: 1 CPU for one task; 1 of 1 CPU and 0 of 0 GPUs are free"


def test_tasks_that_stand_still_on_a_ray_of_ones_own_are_lost(standing):
    said = []
    with pytest.raises(StallError, match="None of 2 tasks has ended for 40 min, so they count as lost"):
        list(on_ray(range(2), square, say=said.append, ends_next=True))
    assert said == [WAITED]


def test_tasks_that_may_wait_for_others_are_said_and_left_alone(standing):
    said = []
    assert list(on_ray(range(2), square, say=said.append)) == [(0, 0), (1, 1)]
    assert said == [WAITED] and standing == []


@pytest.mark.slow
@pytest.mark.ray
def test_shards_written_by_several_processes_have_the_bytes_of_one(one_ray, tmp_path):
    pool, choices = nested_pool(nested_folder(tmp_path))
    build(pool, choices, str(tmp_path / "one"), here, bar=no_bar)
    build(pool, choices, str(tmp_path / "several"), on_ray, bar=no_bar)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "several")
    assert sorted(on_ray(range(13), square)) == [(n, n * n) for n in range(13)]
    with pytest.raises(DataError, match="13 is unlucky"):
        list(on_ray(range(100), square))


@pytest.mark.slow
@pytest.mark.ray
def test_a_data_set_made_by_several_processes_has_the_bytes_of_one(one_ray, tmp_path):
    """On the Ray that is there, which stays; on a node without a CPU, where tasks would wait for ever, in this process."""
    cfg, said = DataConfig(uri=str(nested_folder(tmp_path)), classes_from="path"), []

    @contextlib.contextmanager
    def engine(_num_images):
        with ray_tasks(said.append) as run:
            assert run.func is on_ray and run.keywords == {"say": said.append}
            yield run

    make(cfg, str(tmp_path / "one"), shard_size=20)
    make(cfg, str(tmp_path / "several"), shard_size=20, engine=engine)
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "several")
    assert ray.is_initialized() and said == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: [{"NodeID": ray.get_runtime_context().get_node_id(), "Resources": {}}])
        with ray_tasks(said.append) as run:
            assert run is here


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_build_through_ray_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL for the command once some shards are whole; the same command ends with the bytes of one process."""
    folder, out = nested_folder(tmp_path), tmp_path / "out"
    options = ["--attributes-from", "2", "--imbalance-factor", "4", "--shard-size", "1"]
    script = [sys.executable, str(ROOT / "pipelines" / "make_shards.py"), "glt", str(folder)]
    environment = {**os.environ, "LTCORE_CACHE": str(tmp_path / "cache")}

    def command(target, engine):
        return [*script, str(target), *options, "--engine", engine]

    child = subprocess.Popen(command(out, "ray"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while child.poll() is None and len(whole := list(tmp_path.glob(".out.building-*/records/*.json"))) < 3:
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    assert len(whole) >= 3 and not out.exists(), "killed while shards were left"
    done = subprocess.run(command(out, "ray"), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "shards of an interrupted build are whole" in done.stdout + done.stderr
    subprocess.run(command(tmp_path / "one", "inline"), env=environment, capture_output=True, check=True, timeout=300)
    assert file_hashes(out) == file_hashes(tmp_path / "one") and not list(tmp_path.glob(".out.building-*"))
