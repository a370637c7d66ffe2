"""A password in a URI is refused before anything is stored, and is repeated nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltcore.cli.entry import run_main
from ltcore.cli.parsers import read_train, read_tune
from ltcore.cli.train import train
from ltcore.cli.tune import tune
from ltcore.errors import USERINFO, ConfigError
from ltcore.storage import list_files, read_bytes

URI = "s3://AKIA:pa55word@bucket/x"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--data", URI], "data.uri"),
        (["folder", f"train.init_from={URI}"], "train.init_from"),
        (["folder", f"model.weights={URI}/x.pth"], "model.weights"),
        (["cifar100_lt_crt", f"stage2.from_run={URI}"], "stage2.from_run"),
        (["folder", "--storage", URI, "--fresh"], r"--storage \(or LTCORE_STORAGE\)"),
        ([f"{URI}/recipe.yaml"], "s3://..."),
    ],
)
def test_every_uri_of_a_command(words: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [] if "--storage" in words else ["--storage", str(tmp_path)]
    with pytest.raises(ConfigError, match=rf"^{key} is a URI with a user name or password in it") as error:
        train(read_train(None, [*words, *where, "--engine", "inline"]))
    assert "pa55word" not in f"{error.value}{capsys.readouterr()}"
    assert not list(tmp_path.glob("[!l]*")), "nothing but the cache is there"


def test_those_of_a_sweep(tmp_path: Path) -> None:
    for words in (["--storage", URI], ["--sweep", f"{URI}/sweep.yaml"]):
        with pytest.raises(ConfigError, match="is a URI with a user name or password") as error:
            tune(read_tune(None, words))
        assert "pa55word" not in str(error.value)


def test_the_endpoint_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:pa55word@localhost:1")
    for read in (list_files, read_bytes):
        with pytest.raises(ConfigError, match=r"^AWS_ENDPOINT_URL is a URI with a user name or password") as error:
            read("s3://bucket/x")
        assert "pa55word" not in str(error.value)


FORMS = [
    URI,
    "s3://AKIA:pa55/word@bucket/x",  # every second key of AWS holds a slash
    "s3://AKIA:55/pa55word@bucket/x",
    "http://user:pa55/word@host:9000",
    "gs://pa55word@bucket",
    "ftp://a/b,http://user:pa55word@host",
    "abfs://account:pa55word@host/x",
    "abfss://:pa55word@host/x",
    "https://host/x.zip?se=1&sig=pa55word",
    "https://host/x.zip?X-Amz-Signature=pa55word",
    "https://host/x.zip?AWSAccessKeyId=A&Expires=1&Signature=pa55word",
    "https://host/x.zip?X-Amz-Security-Token=pa55word",
    "https://host/x.zip?v=2&api_key=pa55word",
    "https://host/x.zip?apikey=pa55word",
]


@pytest.mark.parametrize("uri", FORMS)
def test_every_form_of_it(uri: str) -> None:
    assert USERINFO.search(uri)
    with pytest.raises(ConfigError, match="is a URI with a user name or password in it") as error:
        read_bytes(uri)
    assert "pa55" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a:b@c",
        "http://host:9000/a@b",
        "http://[::1]:9000/a@b",
        "https://host/x@y",
        "/home/me@work:x",
        "s3://a/x,s3://b/y@z",
        "abfs://container@account.dfs.core.windows.net/x",
        "https://host/x.zip?download=1",
        "https://host/x.zip?key=3&signed=yes",
    ],
)
def test_what_is_none(uri: str) -> None:
    assert not USERINFO.search(uri)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--storage", URI], "--storage"),
        ([f"--data={URI}"], "--data"),
        ([f"train.epochs={URI}"], "train.epochs"),
        ([f"data.uri={URI}", "data.uri=s3://other"], "data.uri"),
        ([URI], "an argument"),
    ],
)
def test_no_parser_repeats_it(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no W&B run keeps it, which records the whole command."""
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: pytest.fail("it went on"))
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"error: {named} is a URI with a user name or password in it") and "pa55" not in said


def test_an_at_sign_elsewhere_is_no_password(tmp_path: Path) -> None:
    (tmp_path / "a@b").write_text("x")
    assert read_bytes(f"file://{tmp_path}/a@b") == b"x"
