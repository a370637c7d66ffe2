"""The way in and out of every command: exit codes, errors as one sentence, interruptions, remarks."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from ltcore.errors import ConfigError, LtcoreError, Terminated
from ltcore.owned_folder import own_temporary_folder
from ltcore.text import message
from ltcore.uris import check_uris


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Runs a pipeline and exits: errors are one sentence on stderr, with a traceback only under ``--debug``."""
    try:
        _check_uris(sys.argv[1:])
        with _sigterm_is_an_interrupt(), own_temporary_folder():
            code = main() or 0
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        print(
            f"\n{'terminated' if ended else 'interrupted'}; the same command continues where it stopped",
            file=sys.stderr,
        )
        code = 128 + (signal.SIGTERM if ended else signal.SIGINT)
    except BrokenPipeError:  # whoever read the output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if isinstance(error, LtcoreError):
            print(message(f"error: {error}"), file=sys.stderr)
            code = error.exit_code
        else:
            said = f"error: unexpected {type(error).__name__}: {error}; run again with --debug"
            print(message(said), file=sys.stderr)
            code = 1
    if sys._getframe(1).f_globals.get("__name__") in ("__main__", "ltcore.cli.main"):  # not called by a test
        _leave(code)
    raise SystemExit(code)


@contextlib.contextmanager
def _sigterm_is_an_interrupt() -> Iterator[None]:
    """Lets SIGTERM unwind the command as Ctrl-C does, so that nothing it started stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def end(*_: object) -> NoReturn:
        if os.getpid() != own:  # a forked child, such as a decoder, which its parent ends in this way
            os._exit(128 + signal.SIGTERM)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text: str) -> None:
    """Prints a remark for the user at the terminal, apart from the output of the command.

    It is lost where it cannot be written, as on a full disk or to a reader that has gone.
    """
    with contextlib.suppress(OSError):
        print(message(text), file=sys.stderr, flush=True)


def _check_uris(argv: Sequence[str]) -> None:
    """Refuses URIs that are none, and those with a password, anywhere in the command.

    Parsers repeat arguments that they do not accept, and W&B keeps the command.
    """
    for before, word in zip(["", *argv], argv, strict=False):
        key, _, value = word.partition("=")
        flag = before if before.startswith("--") else "an argument"
        try:
            check_uris(**{flag: word} if "://" in key or not value else {key: value})
        except ValueError as error:
            raise ConfigError(f"{error}.") from None


def _leave(code: int) -> NoReturn:
    """Ends the process as the interpreter does, but without the destructors of C++ libraries.

    After an error their threads may still run, and the process would sometimes abort (exit code -6) with all its work
    done. Whoever sends another signal meanwhile ends it at once.
    """
    if threading.current_thread() is threading.main_thread():
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, signal.SIG_DFL)
        # as Python itself: idle executors are ended, and all threads but daemons waited for
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
