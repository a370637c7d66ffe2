"""Where the numbers of a run go: JSON lines, TensorBoard, W&B."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.tracking.base import Tracker as Tracker
    from ltcore.tracking.config import TrackingConfig as TrackingConfig
    from ltcore.tracking.tracker import open_tracker as open_tracker

__all__ = ["Tracker", "TrackingConfig", "open_tracker"]

__getattr__ = lazy(
    __name__,
    {
        "Tracker": "ltcore.tracking.base",
        "TrackingConfig": "ltcore.tracking.config",
        "open_tracker": "ltcore.tracking.tracker",
    },
)
