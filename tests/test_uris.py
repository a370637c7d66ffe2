"""Texts that are no URI are refused where they enter, with what to write instead; paths of all kinds are none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore import storage
from ltcore.cli.entry import run_main
from ltcore.cli.prepare import storage_root
from ltcore.config.schema import RunConfig
from ltcore.data.config import DataConfig
from ltcore.errors import ConfigError
from ltcore.uris import check_uris

WRONG = {
    "s3:/x": "lacks a slash",
    "s3:x": "lacks a slash",
    "gs:/x": "lacks a slash",
    "file:/x": "lacks a slash",
    "https:/host/x": "lacks a slash",
    "s3:///x": "names no bucket",
    "s3://": "names no bucket",
    "gs:///x": "names no bucket",
    "S3://b/x": "in capitals",
    "File:///x": "in capitals",
    "C:\\x": "a path of Windows",
    "d:/x": "a path of Windows",
    "\\\\server\\share": "a path of Windows",
    "file://host/x": "names another machine",
    "/data/a,s3:/b": "lacks a slash",
}
RIGHT = (
    "runs",
    "./a:b",
    "/data/x,/data/y",
    "~/runs",
    "file:///data",
    "file://~/x",
    "s3://b",
    "s3://b/a//b",
    "gs://b/x",
    "hf://datasets/a/b",
    "https://host/x.zip?a=s3:/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "digits-glt",
    "cifar100:x",
    "/photos/s3:/x",
)


@pytest.mark.parametrize(("uri", "why"), WRONG.items())
def test_what_is_no_uri(uri: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^uri=.*{why}.*Write .*, as"):
        check_uris(uri=uri)


@pytest.mark.parametrize("uri", RIGHT)
def test_what_is_one(uri: str) -> None:
    check_uris(uri=uri, none=None)


@pytest.mark.parametrize("uri", [uri for uri in WRONG if "," not in uri])
def test_every_way_in_refuses_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for enter in (
        storage_root,
        storage.read_bytes,
        storage.list_files,
        lambda text: storage.write_bytes_atomic(text, b""),
    ):
        with pytest.raises(ConfigError, match="Write "):
            enter(uri)
    with pytest.raises((ConfigError, ValueError), match="Write "):
        DataConfig(uri=uri)
    for key in ("train.init_from", "model.weights", "stage2.from_run", "data.uri"):
        with pytest.raises(ConfigError, match="Write "):
            RunConfig(name="x").replace({key: uri})
    for words in (["--storage", uri], [f"--data={uri}"], [f"data.uri={uri}"], [uri]):
        monkeypatch.setattr("sys.argv", ["ltcore", *words])
        with pytest.raises(SystemExit) as ended:
            run_main(lambda: pytest.fail("it went on"))
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and "Write " in said and len(said.splitlines()) == 1
    assert not list(tmp_path.glob("[!l]*")), "nothing is made"
