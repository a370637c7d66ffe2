"""A spot machine is taken back while it trains: notice, drain, checkpoints, the rest elsewhere, and nothing lost.

Head and workers start Ray and the watcher of notices by the commands of cluster.yaml. The notice comes from a metadata service
at the address that EC2 has for it, on the machine itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltcore.cli.prepare import prepare_run
from ltcore.config.load import load_run
from ltcore.config.records import RunRecord
from ltcore.config.schema import RunConfig
from ltcore.storage import read_jsonl
from tests.cluster.nodes import TRAIN_TAB, Lab, Node, inside, lab, sh, take_back
from tests.cluster.store import BUCKET, STORE, everything, object_store
from tests.ddp import run_ranks
from tests.metadata import Metadata, metadata_service
from tests.paths import ROOT
from tests.training.runs import Rank, assert_equal_runs, run

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.timeout(1200)]

LINK_LOCAL = "169.254.169.254"
CPUS = {"ltc-head": 0, "ltc-doomed": 4, "ltc-spare": 4}
LEFT_S = 35.0
"""Between notice and end, instead of EC2's two minutes."""
TRAIN_S = 24.0
"""Roughly how long each run trains. A notice is known everywhere after half of this: the watcher asks every five seconds."""
LEAST_EPOCHS = 20
PATIENCE_S = 400.0
WITHOUT_BUDGET = """
from ltcore.cli.entry import run_main
from ltcore.cli.main import tune
from ltcore.runtime import ray_task
from ltcore.tuning import sweep
sweep.LOST_ON_CLUSTERS = 0
ray_task.most_failures = lambda job: 0
run_main(lambda: tune("A sweep whose first failure is its last."))
"""
RECIPE = "digits_glt_lpa_dro_ifl"
PLAIN = {
    "objective.terms.lpa": None,
    "objective.terms.dro": None,
    "objective.terms.ifl": None,
    "model.name": "resnet20",
    "train.eval_every": 1000,
    "train.threads": 1,
    "train.precision": "fp32",
    "tracking.wandb": False,
    "tracking.tensorboard": False,
}
SWEEP = (
    f"python ~/without_budget.py {RECIPE} --sweep tune_lpa --name sweep --engine trial --num-trials 1 sweep.retrain_seeds=0 "
    "sweep.alt=false sweep.space.objective.terms.lpa.weight=null sweep.space.objective.terms.dro.radius=null "
    "sweep.space.objective.terms.ifl.num_envs=null sweep.space.train.optim.lr=choice:0.05 "
)
"""One trial, of Ray Tune, and the baseline, a Ray task; both have one configuration."""
GROUP = f"python -m ltcore train {RECIPE} --name group --workers 1-2 "
RUNS = {"trial": "sweep/trials/00000", "baseline": "sweep/trials/baseline", "group": "group"}
DEATHS = (
    "python -c \"import ray; from ray.core.generated.common_pb2 import NodeDeathInfo; ray.init(logging_level='ERROR'); "
    "print([(n['NodeName'], NodeDeathInfo.Reason.Name(n['DeathReason']), n['DeathReasonMessage']) "
    "for n in ray.nodes() if not n['Alive']])\""
)


def bashrc() -> str:
    variables = {
        **STORE,
        "PATH": f"{ROOT}/.venv/bin:$PATH",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "LTCORE_STORAGE": f"s3://{BUCKET}/ltcore",
        "GLOO_SOCKET_IFNAME": "eth0",  # these machines' names have no address
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # as this machine has less time than one of EC2
    }
    return "".join(f"export {key}={value}\n" for key, value in variables.items())


class Scene:
    """A head, a machine that will be taken back and one that comes in its place, and what the head is told to run there."""

    def __init__(self, made: Lab, store: Any, pool: ThreadPoolExecutor) -> None:
        self.lab, self._store, self._pool = made, store, pool
        self.commands: list[Future[str]] = []
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:.0f} s: {what}", flush=True)

    def give(self, command: str) -> None:
        self.commands.append(self._pool.submit(self.lab.on, self.lab.nodes[0], command, 900))

    def record(self, name: str) -> RunRecord | None:
        key = f"ltcore/{RUNS[name]}/run.json"
        try:
            stored = self._store.get_object(Bucket=BUCKET, Key=key)
        except self._store.exceptions.NoSuchKey:
            return None
        return RunRecord.from_json(json.loads(stored["Body"].read()), key)

    def records(self) -> dict[str, RunRecord]:
        return {name: found for name in RUNS if (found := self.record(name)) is not None}

    def until(self, what: str, fulfilled: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not fulfilled():
            for command in self.commands:
                assert not command.done(), f"{what}: a command ended before: {command.result()}"
            assert time.monotonic() < end, f"{what}: not within {PATIENCE_S:.0f} s"
            time.sleep(0.5)
        self.say(what)

    def until_all(self, what: str, fulfilled: Callable[[RunRecord], bool]) -> None:
        """Waits until the records of all runs fulfill something."""
        self.until(what, lambda: len(found := self.records()) == len(RUNS) and all(map(fulfilled, found.values())))


def listed(store: Any, prefix: str) -> bool:
    return bool(store.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents"))


def start_ray(made: Lab, node: Node) -> None:
    """Gives the commands of cluster.yaml, with what `ray up` sets for them."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    head = made.nodes[0]
    resources = json.dumps({"CPU": CPUS[node.name]})
    for command in config["head_start_ray_commands" if node is head else "worker_start_ray_commands"]:
        given = command.replace(" --autoscaling-config=~/ray_bootstrap_config.yaml", "")
        made.on(node, f"export RAY_HEAD_IP={head.ip} RAY_OVERRIDE_RESOURCES='{resources}'; {given}", timeout=180)


@contextlib.contextmanager
def cloud(node: Node) -> Iterator[Metadata]:
    """The node's metadata service."""
    sh("ip", "-n", node.name, "addr", "add", f"{LINK_LOCAL}/32", "dev", "lo")
    with metadata_service((LINK_LOCAL, 80), partial(inside, node)) as made:
        yield made


@pytest.fixture
def store() -> Iterator[Any]:
    with object_store() as client:
        yield client


@pytest.fixture
def machines() -> Iterator[Lab]:
    assert not ROOT.is_relative_to("/tmp"), "a node has its own /tmp, and would not find a checkout that lies there"
    with lab(["head", "doomed", "spare"], bashrc()) as made:
        head, *workers = made.nodes
        (head.home / "without_budget.py").write_text(WITHOUT_BUDGET)
        made.on(head, "ray get-auth-token --generate > /dev/null", timeout=60)
        for node in workers:  # as cluster_synced_files
            (node.home / ".ray").mkdir()
            (node.home / ".ray" / "auth_token").write_text((head.home / ".ray" / "auth_token").read_text())
        yield made


def given(epochs: int) -> str:
    words = {**PLAIN, "train.epochs": epochs}
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in words.items())


def epochs_that_last(folder: Path) -> int:
    """How many epochs take about ``TRAIN_S`` on this machine, as busy as it is now."""
    config = load_run(RECIPE, {**PLAIN, "train.epochs": 4})
    uri, _ = prepare_run(config, str(folder), lambda line: None)
    run(config, uri, folder)
    seconds = [line["time_s"] for line in read_jsonl(folder / "metrics.jsonl")]
    return max(LEAST_EPOCHS, round(TRAIN_S / (seconds[-1] - seconds[0]) * (len(seconds) - 1)))


def undisturbed(tree: dict[str, Any], uri: str, folder: str) -> None:
    run(RunConfig(name="undisturbed").replace(tree), uri, Path(folder), Rank())


def train_undisturbed(records: dict[str, RunRecord], folder: Path) -> None:
    """Trains the trial, of which the baseline is a copy, and the group from beginning to end."""
    for name in ("trial", "group"):
        record = records[name]
        run_ranks(undisturbed, record.world, dict(record.config), record.data.uri, str(folder / name))


def test_nothing_is_lost_with_a_machine_that_is_taken_back(
    machines: Lab, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in STORE.items():
        monkeypatch.setenv(key, value)
    head, doomed, spare = machines.nodes
    with cloud(doomed) as notices, cloud(spare), ThreadPoolExecutor(4) as pool:
        scene = Scene(machines, store, pool)
        measured = pool.submit(epochs_that_last, tmp_path / "measured")
        for node in (head, doomed):
            start_ray(machines, node)
        epochs = measured.result()
        scene.say(f"Ray has started; {epochs} epochs")
        scene.give(GROUP + given(epochs + epochs // 2))  # two processes share its work
        scene.until("Ray Train starts workers", lambda: listed(store, "ltcore/group/.ray_train/"))
        scene.give(SWEEP + given(epochs))
        scene.until_all("all train", lambda run: run.epochs_done > 0)
        notices.take_back_in(LEFT_S)
        gone = time.monotonic() + LEFT_S
        replaced = pool.submit(start_ray, machines, spare)
        scene.until_all("all have left", lambda run: bool(run.starts and run.starts[0].notice))
        assert time.monotonic() < gone, "with checkpoints before the end"
        compared = pool.submit(train_undisturbed, scene.records(), tmp_path / "undisturbed")
        replaced.result()
        time.sleep(max(0.0, gone - time.monotonic()))
        take_back(doomed)
        scene.say("the machine is gone")
        swept = scene.commands[1].result()
        scene.commands[0].result()
        compared.result()
        scene.say("all have ended, and what they are compared with")
        deaths = machines.on(head, DEATHS, timeout=120)
        tab = machines.on(head, TRAIN_TAB, timeout=120)
    watched = [(machines.tmp(node) / "ltcore-spot.log").read_text() for node in (doomed, spare)]
    assert re.fullmatch(
        r"spot: watching for notices of Ec2\nspot: EC2 spot interruption, \d+ s left: draining this node\n", watched[0]
    )
    assert watched[1] == "spot: watching for notices of Ec2\n"
    assert f"[('{doomed.ip}', 'AUTOSCALER_DRAIN_PREEMPTED', 'EC2 spot interruption')]" in deaths

    records = scene.records()
    for name, record in records.items():
        assert (record.status, record.preemptions) == ("finished", (0,)), name
        assert record.starts is not None
        before, after = record.starts  # and no third one, as after a failure
        assert (before.host, after.host) == (doomed.name, spare.name)
        assert before.left_at and 0 < before.left_at < record.images_seen, "in the middle of its training"
    assert [start.world for start in records["group"].starts or ()] == [2, 2]
    assert "baseline: its node is taken away, so it goes on elsewhere" in swept
    shown = json.loads(next(line for line in tab.splitlines() if line.startswith("{")))["train_runs"]
    assert [(run["name"], run["status"]) for run in shown] == [("train-group", "FINISHED")] * 2, "before and after"

    stored = everything(store)
    assert not [key for key in stored if key.endswith("error.txt")]
    assert "2 announced, 0 images trained on again" in stored["ltcore/sweep/report.html"].decode()
    for key, value in stored.items():
        if not key.endswith("/"):
            (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / key).write_bytes(value)
    for name, key in RUNS.items():
        same = tmp_path / "undisturbed" / ("group" if name == "group" else "trial")
        assert_equal_runs(tmp_path / "ltcore" / key, same)
