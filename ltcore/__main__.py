"""``python -m ltcore``: the console script ``ltcore`` of this Python."""

import sys
from pathlib import Path


def _leave_working_directory() -> None:
    """Takes the working directory, which ``-m`` searches first, off the search path, as the console script has it.

    There a ``queue.py`` of the user's would hide Python's, and any module would be a plugin. Where it holds this very package
    it stays, as the last: processes that are started need it.
    """
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return
    if sys.flags.safe_path or sys.path[:1] != [str(here)]:
        return
    del sys.path[0]
    if str(here) not in sys.path and Path(__file__).absolute().parents[1] == here:
        sys.path.append(str(here))


if __name__ == "__main__":
    _leave_working_directory()
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import main

    run_main(main)
