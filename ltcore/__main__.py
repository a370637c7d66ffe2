"""``python -m ltcore``: the console script ``ltcore`` of this Python."""

from ltcore.cli.entry import run_main
from ltcore.cli.main import main

if __name__ == "__main__":
    run_main(main)
