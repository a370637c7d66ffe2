"""What a sweep starts from and ends with: the record that it goes on with, and the tests of its retrained runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltcore.config.records import RunRecord, SweepRecord, now
from ltcore.errors import DamagedFileError
from ltcore.evaluation.paired import Tests
from ltcore.storage import DAMAGED, join
from ltcore.training.hardware import describe_hardware
from ltcore.training.weights_input import KEYS
from ltcore.tuning.identity import identity_hash
from ltcore.tuning.runs import SweepSetup


def opened(setup: SweepSetup, identity: dict[str, Any]) -> SweepRecord:
    """Returns the record of a sweep that begins, or the stored one of a sweep that continues."""
    sweep = setup.sweep
    stored = SweepRecord.read(setup.uri)
    record = stored or SweepRecord(
        name=sweep.name,
        recipe=sweep.recipe,
        space={key: str(spec) for key, spec in sweep.space.items()},
        search=sweep.search,
        metric=sweep.metric,
        num_trials=setup.num_trials,
        sizes=(),
        cut_from=sweep.size if setup.num_trials < sweep.size else None,
        config_hash=identity_hash(identity),
        identity=identity,
        data_hash=setup.data_hash,
        epochs=setup.base.train.epochs,
        weights=setup.base.model.weights,
        input={key: value for key, value in setup.base.to_flat().items() if key in KEYS and value is not None},
        engine=setup.placement.engine,
        hardware=describe_hardware(),
        created_at=now(),
        stages={},
        stages_before={},
        node_hours={},
        forked={},
    )
    if setup.num_trials not in record.sizes:  # new, or trials are added to a stored sweep
        record = replace(record, sizes=(*record.sizes, setup.num_trials), identity=identity)
    return replace(
        record,
        status="running",
        reason="",
        num_trials=setup.num_trials,
        hardware=replace(describe_hardware(), cluster=setup.cluster.describe()),
        engine=setup.placement.engine,
        gpu_share=setup.gpu_share,
        stages_before=record.stages,
        weights_sha256={**setup.weights_sha256, **(record.weights_sha256 or {})},
    )


def tested(run_uri: str) -> Tests:
    """Returns the test results of a finished run. Raises DamagedFileError where its record has none."""
    record = RunRecord.read(run_uri)
    if record is None or record.test is None:
        raise DamagedFileError(f"{join(run_uri, RunRecord.FILE)}: test is missing. {DAMAGED}")
    return record.test
