"""Run as a program: trains in forked children, kills each with SIGKILL at a random moment, lets the last one finish.

    python -m tests.training.kill_runs SHARDS RUN_DIR SEED KILLS

Prints how far each killed child had come. Apart from the tests' own process, because a process that has computed gradients
does not fork well.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from ltcore.errors import CheckpointError
from ltcore.training import checkpoint as ckpt
from ltcore.training import trainer as fit
from ltcore.training.optim import build_optimizer
from tests.training.runs import TERMS, run, tiny_run

CONFIG = tiny_run(**TERMS, train__epochs=6, train__checkpoint_every_s=0.001)


def reached(run_dir: Path) -> int:
    """Step of the newest complete checkpoint; the trainer renames and removes them while we look."""
    try:
        found = ckpt.find(run_dir / "checkpoints")
    except (OSError, CheckpointError):
        return 0
    return found.meta["step"] if found else 0


def main(shards: str, run_dir: Path, seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    build_optimizer(CONFIG.train.optim, torch.nn.Linear(1, 1))  # imports for seconds, once instead of in every child
    fit.DECIDE_EVERY = 1  # a checkpoint after every step, so that many kills fall into the writing of one
    draw = random.Random(seed)
    targets = sorted(draw.sample(range(1, 28), kills))
    for attempt in range(kills + 1):
        child = os.fork()
        if child == 0:
            run(CONFIG, shards, run_dir)
            os._exit(0)
        if attempt < kills:
            while reached(run_dir) < targets[attempt]:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.08))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(f"exit {os.waitstatus_to_exitcode(status)} at step {reached(run_dir)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
