"""One W&B run per training run, opened by rank 0 alone; offline, and complete, where there is no account.

Ray's own W&B callback is not used: under Train V2 it opens a run on every rank, overwrites the history of a resumed
trial and drops lists. Everything that belongs to the run, staged tables included, is written under
``<run_dir>/wandb``, so that ``wandb sync`` works from where the run is kept.
"""

from __future__ import annotations

import hashlib
import netrc
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from ltcore.errors import ConfigError
from ltcore.tracking.tracker import Scalars, Tracker, TrackerOptions, scalars_of

KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
MAX_ID_CHARS = 64
FLUSH_TIMEOUT_S = 5.0
_STAGING = threading.Lock()


def find_key(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that carry a W&B key: those of the environment, or one made from the netrc entry of W&B's host.

    {} where there is no key. For handing on in memory, never for printing or writing.
    """
    found = {name: environ[name] for name in KEY_VARIABLES if environ.get(name)}
    if found:
        return found
    path = Path(environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlsplit(environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    if not path.is_file() or host is None:
        return {}
    try:
        entry = netrc.netrc(path).authenticators(host)
        return {"WANDB_API_KEY": entry[2]} if entry and entry[2] else {}
    except netrc.NetrcParseError as error:
        warnings.warn(f"{path} is not a netrc file ({error.msg}): no W&B key is read from it.", stacklevel=2)
        return {}


def resolve_mode(mode: str, environ: Mapping[str, str]) -> str:
    """'online', 'offline' or 'disabled': an explicit mode, else WANDB_MODE, else by whether there is a key."""
    if mode != "auto":
        return mode
    return environ.get("WANDB_MODE") or ("online" if find_key(environ) else "offline")


def wandb_id(run_id: str) -> str:
    """``run_id`` as W&B allows it. One that has to be changed gets a hash of the original, so two never become one."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "-", run_id)
    if clean == run_id and len(run_id) <= MAX_ID_CHARS:
        return run_id
    digest = hashlib.blake2b(run_id.encode(), digest_size=4).hexdigest()
    return f"{clean[: MAX_ID_CHARS - 9]}-{digest}"


def open_wandb(
    *,
    run_dir: Path,
    run_id: str,
    group: str,
    name: str,
    job_type: str,
    config_flat: Mapping[str, Any],
    options: TrackerOptions,
) -> list[Tracker]:
    """[the sink], or [] where WANDB_MODE is 'disabled'.

    Where W&B cannot be reached the run goes on offline with a warning, unless ``options.mode`` insists on 'online'.
    """
    mode = resolve_mode(options.mode, os.environ)
    if mode == "disabled":
        return []
    import wandb

    def start(mode: str) -> Any:
        return wandb.init(
            project=options.project,
            id=wandb_id(run_id),
            name=name,
            group=group or None,
            job_type=job_type,
            config=dict(config_flat),
            dir=run_dir,
            mode=cast(Any, mode),  # W&B itself refuses an unknown WANDB_MODE
            resume="allow",
            reinit="create_new",  # a process may run several trials, one after another or at once
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30,
                allow_val_change=True,  # a resumed run may be longer than planned at first
                disable_code=True,
                disable_git=True,  # a remote's address may hold a token
                disable_job_creation=True,
                x_save_requirements=False,
            ),
        )

    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        run = start(mode)
    except wandb.Error as error:
        if options.mode == "online":
            raise ConfigError(
                f"tracking.wandb_mode='online': W&B refused the run ({error}). Set WANDB_API_KEY, or tracking.wandb_mode=offline."
            ) from error
        warnings.warn(f"W&B cannot be reached ({error}): run {run_id} is logged offline.", stacklevel=2)
        run = start("offline")
    return [WandbSink(run, run_dir / "wandb")]


class WandbSink:
    """Writes to an open W&B run. Curves are drawn over epochs; the last value of each metric is in the summary."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run = run
        self._folder = folder
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")

    def log(self, metrics: Scalars, step: int) -> None:
        self._run.log(dict(scalars_of(metrics)), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        with _staged_in(self._folder):
            self._run.log({name: table})

    def html(self, name: str, path: Path) -> None:
        import wandb

        with _staged_in(self._folder):
            self._run.log({name: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        self._run.summary.update({**summary, "status": status})
        path = Path(self._run.settings.sync_file)
        before_bytes = path.stat().st_size
        self._run.finish(exit_code=1 if status == "failed" else 0)
        _wait_for_growth(path, before_bytes)


def _wait_for_growth(path: Path, before_bytes: int) -> None:
    """Wait until W&B's process has written the end of the run to its file.

    An offline ``finish`` returns earlier, and who ends this process next (Ray stops an actor together with its
    children) would leave a file with nothing but its header.
    """
    deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
    seen_bytes = -1
    while time.monotonic() < deadline_s:
        now_bytes = path.stat().st_size
        if before_bytes < now_bytes == seen_bytes:
            return
        seen_bytes = now_bytes
        time.sleep(0.01)


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """W&B stages tables in a folder that only WANDB_DATA_DIR can name, and by default outside the run's."""
    with _STAGING:  # the variable belongs to the process, the folder to the run of one of its threads
        theirs = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = theirs or str(folder)
        try:
            yield
        finally:
            if theirs is None:
                del os.environ["WANDB_DATA_DIR"]
