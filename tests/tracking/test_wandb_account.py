"""Whether runs go online: asked once of the real W&B library and a server of this machine, before anything is trained."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.sdk.lib import urls

from ltcore.cli.train import settle_tracking
from ltcore.config.load import load_run
from ltcore.errors import ConfigError
from ltcore.runtime.doctor import checks as doctor
from ltcore.tracking import wandb_account
from ltcore.tracking.wandb_account import check_variables, find_key, resolve_mode, settle_mode
from ltcore.tracking.wandb_service import end_service
from tests.commands import Command
from tests.tracking.wandb_server import CLOSES, serve

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without a login, no variables of W&B, and a W&B that has read none yet."""
    end_service()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")  # known to monkeypatch: what the code sets on the way goes when the test ends
    monkeypatch.setattr(wandb_account, "PROBE_S", 1)
    yield
    end_service()


@pytest.mark.parametrize(
    ("status", "summary"), [(401, "401"), (500, "did not respond"), (CLOSES, "did not respond"), (200, "")]
)
def test_a_server_is_asked_once_and_decides(status: int, summary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with serve(lambda _: status) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        if not summary:
            assert [settle_mode("auto"), settle_mode("online"), os.environ.get("WANDB_MODE")] == [
                "online",
                "online",
                None,
            ]
            assert [name for name in server.asked if not name.startswith("/")] == ["Viewer"]
            assert "WANDB_SERVICE" not in os.environ, "workers, on other machines too, have one of their own"
            return
        said: list[str] = []
        settle_tracking(load_run("digits_glt_lpa_dro_ifl", {}), said.append)
        assert re.search(f"{summary}.*: runs are logged offline", said[0]) and SECRET not in said[0]
        assert (os.environ["WANDB_MODE"], settle_mode("auto")) == ("offline", "offline"), "what is started here is told"
        with pytest.raises(ConfigError, match=rf"tracking.wandb_mode='online'.*{summary}.*wandb login"):
            settle_mode("online")
        assert {name for name in server.asked if not name.startswith("/")} == {"Viewer"}


@pytest.mark.parametrize(
    ("variables", "summary"),
    [
        ({"WANDB_API_KEY": SECRET, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "127.0.0.1:9"),
        ({"WANDB_API_KEY": "short"}, r"40\+ characters"),
        ({"WANDB_MODE": "online"}, "there is no key"),
    ],
)
def test_without_a_way_or_a_key_runs_go_offline(
    variables: dict[str, str], summary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=f"{summary}.*: runs are logged offline"):
        assert settle_mode("auto") == "offline"


def test_the_doctor_asks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.tracking(ask=True).found == "offline files on the storage (no key here)"
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with serve(lambda _: 401) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        end_service()
        found = doctor.tracking(ask=True)
        assert (found.state, doctor.tracking().state) == (doctor.YELLOW, doctor.GREEN)
    assert "401" in found.found
    assert SECRET not in found.found
    monkeypatch.setenv("WANDB_MODE", "foo")
    assert "WANDB_MODE='foo'" in doctor.tracking(ask=True).found


def test_mode_follows_option_then_variables_then_key() -> None:
    key = {"WANDB_API_KEY": SECRET}
    assert resolve_mode("auto", {}) == "offline"
    assert resolve_mode("auto", key) == "online"
    assert resolve_mode("auto", key | {"WANDB_MODE": ""}) == "online"
    assert resolve_mode("auto", key | {"WANDB_MODE": "offline"}) == "offline"
    assert resolve_mode("auto", key | {"WANDB_MODE": "dryrun"}) == "offline"
    assert resolve_mode("offline", key | {"WANDB_MODE": "online"}) == "offline"
    assert resolve_mode("auto", key | {"WANDB_DISABLED": "true"}) == "disabled"
    assert resolve_mode("auto", key | {"WANDB_DISABLED": "False", "WANDB_MODE": "disabled"}) == "disabled"
    assert resolve_mode("online", key | {"WANDB_DISABLED": "true"}) == "online"


@pytest.mark.parametrize("base_url", ["", "https://api.wandb.ai", "https://wandb.example.org:8080"])
def test_what_wandb_login_writes_is_found(base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_key(os.environ) == {}
    monkeypatch.setenv("WANDB_SILENT", "true")  # else it asks the server for a name, to greet
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    end_service()
    wandb.login(key=SECRET, verify=False)
    end_service()
    assert SECRET in (tmp_path / ".netrc").read_text()
    assert find_key(os.environ) == {"WANDB_API_KEY": SECRET}
    assert find_key({"WANDB_API_KEY": "of the shell"}) == {"WANDB_API_KEY": "of the shell"}


@pytest.mark.parametrize(
    ("content", "summary"),
    [(b"machine", "netrc"), (b"machine x login caf\xe9 password y\n", "utf-8"), (b"password of", "40\\+ characters")],
)
def test_a_login_that_cannot_be_read_is_said_and_no_key(
    content: bytes, summary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if content == b"password of":
        content = f"machine {urls.DEFAULT_BASE_URL.removeprefix('https://')} login user password short\n".encode()
    (tmp_path / ".netrc").write_bytes(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert find_key(os.environ) == {}
        assert resolve_mode("auto", os.environ) == "offline"
    assert summary.replace("\\", "") in "".join(str(w.message) for w in warned) + capfd.readouterr().err


REFUSED = [
    ("WANDB_MODE", "OFFLINE", "'online', 'offline'"),
    ("WANDB_MODE", "foo", "'online', 'offline'"),
    ("WANDB_SILENT", "maybe", "valid boolean"),
    ("WANDB_CONSOLE", "foo", "'off'"),
    ("WANDB_BASE_URL", "notaurl", "valid URL"),
    ("WANDB_TAGS", "a,,b", "Tag at index 1 is empty"),
    ("WANDB_FORK_FROM", "other?_step=1", "mutually exclusive"),
    ("WANDB_HTTP_TIMEOUT", "soon", "valid number"),
    ("WANDB_DISABLED", "maybe", "true or false"),
]


@pytest.mark.parametrize(("name", "value", "expected"), REFUSED)
def test_a_value_that_wandb_refuses_is_named_with_what_is_expected(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        settle_mode("auto")
    said = str(refused.value)
    assert said.startswith(f"{name}={value!r}")
    assert expected in said
    assert said.endswith("Correct or unset it.")
    assert "\n" not in said
    assert "pydantic" not in said


def test_a_key_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f" {SECRET}")
    with pytest.raises(ConfigError, match=r"WANDB_API_KEY=\(hidden\).*whitespace") as refused:
        settle_mode("auto")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_TAGS", "WANDB_SILENT", "WANDB_BASE_URL", "WANDB_ENTITY"])
def test_an_empty_variable_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    assert settle_mode("auto") == "offline"
    assert name not in os.environ


def test_what_wandb_takes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"TAGS": "a,b", "SILENT": "true", "CONSOLE": "wrap", "MODE": "dryrun", "RUN_ID": "x", "RESUME": "must"}
    for name, value in taken.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    check_variables()


@pytest.mark.parametrize("words", [["train", "digits_glt_lpa_dro_ifl"], ["tune"]])
def test_commands_refuse_before_they_start_anything(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "foo")
    done = command(*words, "--storage", tmp_path / "out")
    assert (done.code, done.out.count("start Ray")) == (2, 0)
    assert done.err.startswith("error: WANDB_MODE='foo' is refused by W&B")
    assert not (tmp_path / "out").exists()
