"""Bad samples are skipped on request alone, and counted."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ltcore.data.config import DataConfig
from ltcore.data.loading.factory import make_loader
from ltcore.errors import DataError
from tests.data.small import only_shard, write_spoiled


@pytest.fixture
def spoiled(tmp_path: Path) -> str:
    write_spoiled(tmp_path / "spoiled")
    return str(tmp_path / "spoiled")


@pytest.mark.parametrize("kind", ["cache", "threads"])
def test_every_replaced_sample_is_counted_and_told_once(
    spoiled: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    loader = make_loader(DataConfig(loader=kind, max_bad_samples=2), spoiled, batch_size=4, seed=0)
    for epoch in range(3):
        assert sum(len(batch) for batch in loader.train_batches(epoch)) == 20
    assert len(loader.bad_samples) == 2
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(key for text in told for key in ("'k0'", "'k2'") if key in text) == ["'k0'", "'k2'"]
    assert "1 of at most 2 (data.max_bad_samples)" in told[0]
    loader.close()
    if kind == "cache":  # filled by an earlier run: this one is told as well
        caplog.clear()
        make_loader(DataConfig(loader=kind, max_bad_samples=2), spoiled, batch_size=4, seed=0).close()
        (text,) = [record.getMessage() for record in caplog.records]
        assert "2 images of train cannot be decoded and are replaced" in text


def test_a_damaged_shard_is_no_bad_sample(small: Path) -> None:
    shard = only_shard(small)
    data = (small / shard.path).read_bytes()
    place = pq.read_table(small / shard.index_path)["offset"][0].as_py()
    (small / shard.path).write_bytes(data[:place] + b"\0" * 20 + data[place + 20 :])
    loader = make_loader(DataConfig(loader="threads", max_bad_samples=100), str(small), batch_size=3, seed=0)
    with pytest.raises(DataError, match="found sha256"):
        list(loader.train_batches(0))
