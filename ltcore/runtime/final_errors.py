"""The end of a Ray Train run at an error that no repetition mends, whichever of the workers met it.

Ray starts a group again after any error of a worker, with a number of failures as the only limit. A loss that is not finite
on one rank alone would come back each time, after all the steps since the last checkpoint.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from ltcore.errors import CapacityError, LtcoreError, RemovedError, is_retryable


def final_error(errors: Any) -> LtcoreError | None:
    """Returns the first of the workers' errors that comes again for as long as the command says the same; None if none does.

    Two more count as final, too: a memory that is full, which the next start would fill with the same batches, and a run that
    somebody removed, which the next start would begin anew.
    """
    ours = (getattr(error, "cause", None) or error for error in errors)
    final = (error for error in ours if isinstance(error, LtcoreError) and _comes_again(error))
    return next(final, None)


def _comes_again(error: LtcoreError) -> bool:
    return isinstance(error, CapacityError | RemovedError) or not is_retryable(error)


class EndAtFinalError(ControllerCallback, WorkerGroupCallback):
    """Replaces Ray's decision to start the group again by the final error, which ends the run.

    An error of the controller's own callbacks is one that Ray does not try again.
    """

    def __init__(self) -> None:
        self._error: LtcoreError | None = None

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Remembers what the workers failed of."""
        self._error = final_error(worker_group_status.errors.values())

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Raises the final error, if there is one."""
        del failure_decision
        if self._error is not None:
            raise self._error
