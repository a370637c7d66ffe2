"""One W&B run per training run, opened by rank 0 only; offline, and complete, where W&B cannot be reached.

Ray's own W&B callback is not used: under Train V2 it opens a run on every rank, overwrites the history of a resumed
trial and drops lists. All files of the run, including staged tables, are written under ``<run_dir>/wandb``, so that
``wandb sync`` works from wherever the run directory is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ltcore.errors import ConfigError
from ltcore.text import printable, storable
from ltcore.tracking.base import Scalars, Tracker, scalars_of
from ltcore.tracking.config import TrackingConfig
from ltcore.tracking.wandb_account import go_offline, settle_mode
from ltcore.tracking.wandb_service import bound_exit, bounded, end_service

MAX_ID_CHARS = 64
FLUSH_TIMEOUT_S = 5.0
UPLOAD_TIMEOUT_S = 60.0
"""How long the end of a run waits for its upload; after that, the rest is left to ``wandb sync``."""
ANSWER_S = 90.0
"""How long anything asked of W&B's process may take, the upload at the end included. One that stands still never answers."""
UPLOAD_EVERY_S = 30.0
"""Seconds between two requests of a run with what it logged meanwhile, also where an epoch takes less. W&B takes 2 requests a
second of a run and 500 of a project by default (docs.wandb.ai, "Rate limits"): 1,000 runs at a time send 33, and with the
client's own 15 s, 67."""
_STAGING = threading.Lock()

Act = Callable[[Any], None]
"""An operation on an open W&B run."""


def wandb_id(run_id: str) -> str:
    """Converts ``run_id`` to the characters and length that W&B allows.

    A changed one gets a hash of the original, so that different ids stay different.
    """
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
    options: TrackingConfig,
) -> list[Tracker]:
    """Returns the W&B sink in a list, empty where no W&B run is possible.

    That is where W&B is disabled, or where not even offline files can be written. Where W&B accepts no run it continues
    offline with a warning; with ``options.wandb_mode`` 'online' it raises ConfigError instead.
    """
    mode = settle_mode(options.wandb_mode)
    if mode == "disabled":
        return []

    def start(mode: str) -> Any:
        run = _init(
            project=options.project,
            id=wandb_id(run_id),
            name=storable(name),
            group=storable(group) or None,
            job_type=job_type,
            config={storable(key): value for key, value in config_flat.items()},
            dir=run_dir,
            mode=cast(Any, mode),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run

    run_dir.mkdir(parents=True, exist_ok=True)
    sink = WandbSink(start, run_id, run_dir / "wandb")
    try:
        sink.open(mode)
    except Exception as error:  # errors of W&B and of its service process have no common base class
        if options.wandb_mode == "online":
            end_service()
            raise ConfigError(
                f"tracking.wandb_mode='online': W&B refused the run ({error}). Check WANDB_API_KEY and tracking.project, or "
                "set tracking.wandb_mode=auto, which goes offline."
            ) from error
        sink.reopen(error)
    return [sink] if sink.is_open else []


def _init(**of_the_run: Any) -> Any:
    import wandb

    theirs = os.environ.get("WANDB_SERVICE")
    run = wandb.init(
        **of_the_run,
        resume="allow",
        reinit="create_new",  # a process may run several trials, one after another or at once
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=30,
            finish_timeout=UPLOAD_TIMEOUT_S,
            x_file_stream_transmit_interval=UPLOAD_EVERY_S,
            finish_timeout_raises=True,
            allow_val_change=True,  # a resumed run may have more epochs
            disable_code=True,
            disable_git=True,  # the URL of a git remote may contain a token
            disable_job_creation=True,
            x_save_requirements=False,
        ),
    )
    if theirs is None:  # another service belongs to the caller's own runs
        bound_exit()
    return run


class WandbSink(Tracker):
    """Writes to an open W&B run. Curves are drawn over epochs; the summary has the last value of each metric.

    A failure of W&B never ends training: the run continues in a new offline file, which ``wandb sync`` appends to the
    first, or, where that fails as well, without W&B. Rows that its process had taken and not yet written are lost to W&B with
    it; metrics.jsonl has them.
    """

    def __init__(self, start: Callable[[str], Any], run_id: str, folder: Path) -> None:
        self._start, self._run_id, self._folder = start, run_id, folder
        self._run: Any = None
        self._reopened = False

    @property
    def is_open(self) -> bool:
        """Tells whether there is a W&B run to write to."""
        return self._run is not None

    def open(self, mode: str) -> None:
        """Opens the W&B run in a mode."""
        with bounded(ANSWER_S):  # the service may be that of a run before, and ``init_timeout`` is not about its answer
            self._run = self._start(mode)

    def reopen(self, error: Exception) -> None:
        """Continues after an error: offline the first time, without W&B after that."""
        self._run = None
        end_service()
        go_offline()
        if not self._reopened:
            self._reopened = True
            try:
                self.open("offline")
            except Exception as second:
                error = second
        after = (
            "is logged offline from here on" if self.is_open else "continues without W&B; metrics.jsonl has its numbers"
        )
        said = printable(f"W&B failed ({type(error).__name__}: {error}): run {self._run_id} {after}.")
        warnings.warn(said, stacklevel=4)

    def log(self, metrics: Scalars, step: int) -> None:
        values = {storable(key): value for key, value in scalars_of(metrics)}
        self._do(lambda run: run.log(values, step=step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._log_staged(name, lambda: _table(columns, rows))

    def bars(self, name: str, label: str, value: str, rows: Sequence[tuple[str, float]]) -> None:
        def chart() -> Any:
            import wandb

            return wandb.plot.bar(_table([label, value], rows), label, value, title=storable(name))

        self._log_staged(name, chart)

    def confusion(self, name: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Logs W&B's own confusion chart: ``wandb.plot.confusion_matrix`` takes predictions one by one, not counts."""

        def chart() -> Any:
            import wandb

            columns = ["Actual", "Predicted", "nPredictions"]
            named = zip(classes, counts, strict=True)
            rows = [(label, other, n) for label, row in named for other, n in zip(classes, row, strict=True)]
            return wandb.plot_table(
                vega_spec_name="wandb/confusion_matrix/v1",
                data_table=_table(columns, rows),
                fields={column: column for column in columns},
                string_fields={"title": storable(name)},
            )

        self._log_staged(name, chart)

    def _log_staged(self, name: str, make: Callable[[], Any]) -> None:
        """Logs what ``make`` returns, a table or chart that W&B stages as a file; made anew for a run that goes on."""

        def act(run: Any) -> None:
            with _staged_in(self._folder):
                run.log({storable(name): make()})

        self._do(act)

    def html(self, name: str, path: Path) -> None:
        import wandb

        self._log_staged(name, lambda: wandb.Html(path.read_text(encoding="utf-8"), inject=False))

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        values = {storable(key): value for key, value in summary.items()}
        self._do(lambda run: _finish(run, {**values, "status": status}, int(status == "failed")))

    def _do(self, act: Act) -> None:
        """Applies ``act`` to the run, and after a failure to the run in which it continues."""
        if self._run is not None and _is_removed(self._folder.parent):  # W&B would bring it back in part
            self._run = None
            end_service()
        while self._run is not None:
            try:
                with bounded(ANSWER_S):
                    act(self._run)
            except Exception as error:
                self.reopen(error)
            else:
                return


def _is_removed(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:  # its disk is disturbed
        return False
    return False


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    import wandb

    data = [[storable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return wandb.Table(columns=list(map(storable, columns)), data=data, allow_mixed_types=True)


def _finish(run: Any, summary: Mapping[str, Any], exit_code: int) -> None:
    run.summary.update(dict(summary))
    path = Path(run.settings.sync_file)
    before_bytes = path.stat().st_size
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        warnings.warn(
            f"W&B did not take all of the run within {UPLOAD_TIMEOUT_S:g} s: `wandb sync {path.parent}` uploads the rest.",
            stacklevel=5,
        )
    _wait_for_growth(path, before_bytes)


def _wait_for_growth(path: Path, before_bytes: int) -> None:
    """Waits until W&B's process has written the end of the run to its file.

    An offline ``finish`` returns earlier. If this process is ended next (Ray stops an actor together with its
    children), the file would otherwise contain nothing but its header.
    """
    deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
    seen_bytes = -1
    while time.monotonic() < deadline_s:
        now_bytes = path.stat().st_size
        if before_bytes < now_bytes == seen_bytes:
            return
        seen_bytes = now_bytes
        time.sleep(0.01)


@contextlib.contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Stages W&B tables in ``folder``; by default they are staged outside the run directory.

    Only WANDB_DATA_DIR can set the folder.
    """
    with _STAGING:  # the variable is shared by all threads of the process, each of which may log a different run
        theirs = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = theirs or str(folder)
        try:
            yield
        finally:
            if theirs is None:
                del os.environ["WANDB_DATA_DIR"]
