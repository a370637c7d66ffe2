"""The choice between online and offline W&B runs, made before training starts.

W&B's own code decides which values its variables may have, where a login is stored and whether its server answers.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping

from ltcore.errors import ConfigError
from ltcore.text import printable
from ltcore.tracking.wandb_service import end_service

KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
SECRET_WORDS = ("KEY", "TOKEN", "PASSWORD", "HEADERS")
ALIASES = {"dryrun": "offline", "run": "online"}
ONLINE = ("online", "shared")
PROBE_S = 5
MAX_WORDS_CHARS = 400
"""Limit for the text of an error: a server may have answered with a whole page."""


def find_key(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that carry a W&B key, from the environment or from ``wandb login``.

    {} where there is no key. Only for passing on in memory, never for printing or writing.
    """
    found = {name: environ[name] for name in KEY_VARIABLES if environ.get(name)}
    return found or _stored_login()


def _stored_login() -> dict[str, str]:
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    try:
        host = wandb_setup.singleton().settings.base_url
        auth = wbauth.authenticate_session(host=host, source="ltcore", prompt=False, update_session=False)
    except Exception as error:  # an unreadable netrc or settings file, or a malformed key
        warnings.warn(f"The stored W&B login cannot be read ({_words(error)}).", stacklevel=3)
        return {}
    return {"WANDB_API_KEY": auth.api_key} if isinstance(auth, wbauth.AuthApiKey) else {}


def resolve_mode(mode: str, environ: Mapping[str, str]) -> str:
    """Returns 'online', 'offline', 'disabled' or 'shared'.

    An explicit mode comes first, then WANDB_DISABLED, then WANDB_MODE, then online where there is a key.
    """
    if mode != "auto":
        return mode
    if _disabled(environ):
        return "disabled"
    named = environ.get("WANDB_MODE", "")
    return ALIASES.get(named, named) or ("online" if find_key(environ) else "offline")


def settle_mode(mode: str) -> str:
    """Returns the mode in which runs are opened, after asking W&B whether it accepts them.

    Where it does not within ``PROBE_S`` seconds, runs go offline with a warning, and WANDB_MODE tells all processes
    that this one starts. Raises ConfigError for variables that W&B would refuse, and where the mode is 'online'.
    """
    settled, problem = ask(mode)
    if not problem:
        return settled
    if mode == "online":
        raise ConfigError(
            f"tracking.wandb_mode='online': {problem}. Set WANDB_API_KEY or use `wandb login`, or set "
            "tracking.wandb_mode=auto, which goes offline."
        )
    warnings.warn(f"{problem}: runs are logged offline, and `wandb sync` uploads them.", stacklevel=2)
    go_offline()
    return "offline"


def ask(mode: str) -> tuple[str, str]:
    """Returns the mode and the reason why W&B accepts no run in it, or ''.

    Raises ConfigError for variables that W&B would refuse.
    """
    check_variables()
    settled = resolve_mode(mode, os.environ)
    return settled, _problem() if settled in ONLINE else ""


def go_offline() -> None:
    """Sets WANDB_MODE so that this process, and those that it starts, do not contact W&B again."""
    os.environ["WANDB_MODE"] = "offline"


def check_variables() -> None:
    """Raises ConfigError for values of ``WANDB_*`` that W&B would refuse when the first run is opened.

    Removes empty variables first, which W&B would take for values.
    """
    from wandb import Settings

    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    _disabled(os.environ)
    for name, value in os.environ.items():
        if not name.startswith("WANDB_"):
            continue
        try:
            Settings(resume="allow").update_from_env_vars({name: value})  # as runs are opened
        except Exception as error:
            shown = "(hidden)" if any(word in name for word in SECRET_WORDS) else repr(value)
            raise ConfigError(f"{name}={shown} is refused by W&B: {_words(error)}. Correct or unset it.") from None


def _disabled(environ: Mapping[str, str]) -> bool:
    """Reads WANDB_DISABLED, which other trainers honor and W&B itself does not."""
    value = environ.get("WANDB_DISABLED", "")
    if value.lower() in ("", "0", "false", "no", "off"):
        return False
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    raise ConfigError(f"WANDB_DISABLED={value!r}: expected true or false. Correct or unset it.")


def _problem() -> str:
    """Returns why W&B accepts no run; '' where it does."""
    from wandb.sdk import wandb_setup

    found = find_key(os.environ)
    host = wandb_setup.singleton().settings.base_url
    return _refusal(host, found.get("WANDB_API_KEY")) if found else f"there is no key for W&B ({host})"


@functools.cache
def _refusal(host: str, key: str | None) -> str:
    """Asks the server once per process and key whether it accepts the key.

    Without a key, the identity token is used.
    """
    import wandb

    theirs = os.environ.get("WANDB_SERVICE")
    try:
        wandb.Api(overrides={"base_url": host}, timeout=PROBE_S, api_key=key)
    except Exception as error:  # from the network, the server or W&B's own process
        return f"W&B does not answer within {PROBE_S} s or does not take the key ({_words(error)})"
    finally:
        if theirs is None:  # no other process may log through it, and it would go on asking
            end_service()
    return ""


def _words(error: Exception) -> str:
    """Returns the message of an error in one line.

    Of a validation error, class, location and link are left out.
    """
    details = getattr(error, "errors", None)
    words = (
        "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in details()) if details else str(error)
    )
    return printable(" ".join(words.split()))[:MAX_WORDS_CHARS].rstrip(".") or type(error).__name__
