"""Records of runs and sweeps as tables, figures and HTML pages."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.reporting.records import StoredRun as StoredRun
    from ltcore.reporting.records import StoredSweep as StoredSweep
    from ltcore.reporting.records import read_run as read_run
    from ltcore.reporting.records import read_sweep as read_sweep
    from ltcore.reporting.report import make_report as make_report
    from ltcore.reporting.report import make_table as make_table

__all__ = ["StoredRun", "StoredSweep", "make_report", "make_table", "read_run", "read_sweep"]

__getattr__ = lazy(
    __name__,
    {
        "StoredRun": "ltcore.reporting.records",
        "StoredSweep": "ltcore.reporting.records",
        "make_report": "ltcore.reporting.report",
        "make_table": "ltcore.reporting.report",
        "read_run": "ltcore.reporting.records",
        "read_sweep": "ltcore.reporting.records",
    },
)
