"""What ``ltcore.train``, ``tune`` and ``evaluate`` return: the stored records, with what one does next as methods.

Names of metrics are those of ``run.json``; values are fractions, and None where a metric is not defined.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ltcore.config.records import Metrics, RunRecord, SweepRecord, VariantRecord
from ltcore.errors import CheckpointError
from ltcore.evaluation.catalog import headline
from ltcore.evaluation.protocol_table import ProtocolTable
from ltcore.reporting.summary import ranked, summary_lines
from ltcore.reporting.variants import variants_lines, variants_table
from ltcore.storage import join
from ltcore.text import counted, duration, printable

if TYPE_CHECKING:
    import pandas as pd

    from ltcore.training.predictor import Predictor


R = TypeVar("R", RunRecord, SweepRecord)


@dataclass(frozen=True, repr=False)
class _Stored(Generic[R]):
    """What lies in a directory of its own, with a record."""

    record: R
    """``run.json`` or ``sweep.json``, field by field."""
    uri: str
    """Path or URI of the directory."""

    @property
    def name(self) -> str:
        """Returns its name."""
        return self.record.name

    @property
    def status(self) -> str:
        """Returns 'running', 'finished', 'stopped' or 'failed'."""
        return self.record.status


class Run(_Stored[RunRecord]):
    """A run, as far as it has come."""

    @property
    def metrics(self) -> Mapping[str, Metrics]:
        """Returns test split -> metric -> value, with the weights of the last epoch; empty before the run was tested."""
        return self.record.test or {}

    @property
    def best(self) -> Metrics:
        """Returns the metrics of the epoch that was best on validation, with its ``epoch``."""
        return self.record.best

    def predictor(self, posthoc_tau: float = 0.0, tta: str = "none") -> Predictor:
        """Loads the classifier: the best checkpoint on validation, else the last. See ``ltcore.load``."""
        from ltcore.training.predict import load

        return load(self.uri, posthoc_tau, tta=tta)

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the course of the run: a row for each epoch, a column for each metric."""
        import pandas as pd

        from ltcore.reporting.records import read_run
        from ltcore.training.fetch import fetched

        with fetched(self.uri, lambda names: [n for n in names if n in ("run.json", "metrics.jsonl")]) as folder:
            return pd.DataFrame(read_run(folder).rows)

    def __repr__(self) -> str:
        return _line("Run", self.name, self.status, *_headline(self.metrics), self.uri)

    def _repr_html_(self) -> str:
        sides = {"last epoch": self.record.test or {}, "best on validation": self.record.test_best or {}}
        rows = {f"{split}, {side}": values for side, splits in sides.items() for split, values in splits.items()}
        notes = [
            f"{self.record.epochs_done} of {counted(self.record.epochs_planned, 'epoch')} in {duration(self.record.seconds)}"
        ]
        return _table(f"Run {self.name}: {self.status}", rows, [*notes, self.record.reason, self.uri])


class Sweep(_Stored[SweepRecord]):
    """A sweep, as far as it has come. One that compares variants has a chosen variant in the place of a winner."""

    @property
    def metrics(self) -> Mapping[str, Metrics]:
        """Returns test split -> metric -> mean over the seeds of the winner; empty before it was tested.

        Single values, those of the baseline or of the other variants, and the intervals are in ``record``.
        """
        if self._chosen is not None:
            tests = self._chosen.test or {}
            return {split: {name: _mean(values) for name, values in found.items()} for split, found in tests.items()}
        compared = self.record.comparison or {}
        return {
            split: {metric: statistics.fmean(cell.winner) for metric, cell in cells.items()}
            for split, cells in compared.items()
        }

    @property
    def best(self) -> Run:
        """Returns the winner's run: its first retrain, which was tested, else its trial.

        Of a chosen variant, it is the trial of the first seed. Raises CheckpointError while there is no winner.
        """
        chosen = self._chosen
        winner = self.record.trial(self.record.winner if chosen is None else chosen.trials[0])
        if winner is None:
            raise CheckpointError(f"Sweep {self.name} ({self.status}) has no winner yet. Run it to its end.")
        retrained = [each.run_dir for each in self.record.retrain or () if each.role == "winner"]
        uri = join(self.uri, *retrained[:1] or [winner.run_dir])
        record = RunRecord.read(uri)
        if record is None:
            raise CheckpointError(
                f"{uri} has no run.json, but sweep {self.name} names it. Restore it, or run it again."
            )
        return Run(record, uri)

    @property
    def _chosen(self) -> VariantRecord | None:
        return next((variant for variant in self.record.variants if variant.name == self.record.winner), None)

    @property
    def params(self) -> Mapping[str, Any]:
        """Returns swept key -> value of the winner; empty while there is none. Of a chosen variant: all that it changes."""
        if self._chosen is not None:
            return self._chosen.changes
        winner = self.record.trial(self.record.winner)
        return {} if winner is None else winner.params

    def predictor(self, posthoc_tau: float = 0.0, tta: str = "none") -> Predictor:
        """Loads the classifier of the winner."""
        return self.best.predictor(posthoc_tau, tta)

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each trial, best first, with the swept keys and ``record.metric`` as columns.

        Of compared variants it is a row for each variant and seed, with every metric of validation and tests.
        """
        import pandas as pd

        if self.record.variants:
            return pd.DataFrame([row for variant in self.record.variants for row in _seeds(variant)])
        found, metric = ranked(self.record), self.record.metric
        columns: dict[str, Any] = {
            "trial": [trial.id for _, trial in found],
            "rank": pd.array([rank for rank, _ in found], dtype="Int64"),
            "status": [trial.status for _, trial in found],
            "epochs": [trial.epochs_done for _, trial in found],
            **{key: [trial.params[key] for _, trial in found] for key in self.record.space},
            metric: [trial.last for _, trial in found],
            f"best {metric}": [trial.best for _, trial in found],
        }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return _line("Sweep", self.name, self.status, f"winner={self.record.winner}", self.uri)

    def _repr_html_(self) -> str:
        if self.record.search == "variants":
            compared = {row["method"]: row for row in variants_table(self.record)}
            return _table(f"Sweep {self.name}: {self.status}", compared, [*variants_lines(self.record), self.uri])
        rows = {
            trial.id: {**trial.params, self.record.metric: trial.last, "epochs": trial.epochs_done, "": trial.status}
            for _, trial in ranked(self.record)
        }
        return _table(f"Sweep {self.name}: {self.status}", rows, [*summary_lines(self.record), self.uri])


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Metrics of a classifier on some data."""

    record: Mapping[str, Any]
    """What ``ltcore evaluate --output FILE`` writes."""
    _predictor: Predictor

    @property
    def metrics(self) -> Mapping[str, Metrics]:
        """Returns split -> metric -> value."""
        splits: Mapping[str, Metrics] = self.record["splits"]
        return splits

    def predictor(self) -> Predictor:
        """Returns the classifier that was evaluated."""
        return self._predictor

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each split, a column for each metric."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.metrics, orient="index")

    def __repr__(self) -> str:
        return _line("Evaluation", self.record["name"], *_headline(self.metrics), self.record["checkpoint"])

    def _repr_html_(self) -> str:
        notes = [f"checkpoint {self.record['checkpoint']}", f"data {self.record['data']}"]
        return _table(f"Evaluation on {self.record['name']}", self.metrics, notes)


@dataclass(frozen=True, repr=False)
class Protocols:
    """CLT, ALT and GLT of runs that differ in training split and seed alone."""

    record: Mapping[str, Any]
    """What ``ltcore evaluate RUN --protocols --output FILE.json`` writes."""
    table: ProtocolTable
    """The same as objects: a column for each protocol, with values per seed and intervals."""

    @property
    def metrics(self) -> Mapping[str, Metrics]:
        """Returns protocol -> metric -> mean over the seeds."""
        columns = self.table.columns
        return {column.name: {name: cell.mean for name, cell in column.metrics.items()} for column in columns}

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each protocol and metric: mean, sd over seeds, and both ends of the interval."""
        import pandas as pd

        return pd.DataFrame(self.table.rows())

    def __repr__(self) -> str:
        return _line("Protocols", self.record["name"], *_headline(self.metrics), f"seeds={self.table.num_seeds}")

    def _repr_html_(self) -> str:
        shown = self.table.shown()
        rows = {name: {metric: values.get(metric) for metric in shown} for name, values in self.metrics.items()}
        return _table(f"Protocols on {self.record['name']}", rows, [f"means; {self.table.method}"])


def _seeds(variant: VariantRecord) -> list[dict[str, Any]]:
    """Returns a flat row for each seed of a variant."""
    columns = dict(variant.val)
    for split, found in (variant.test or {}).items():
        columns |= {f"{split}/{name}": values for name, values in found.items()}
    rows = []
    for at, trial in enumerate(variant.trials):
        values = {name: of_seed[at] for name, of_seed in columns.items() if at < len(of_seed)}
        rows.append({"variant": variant.name, "trial": trial, "reason": variant.reason, **values})
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean over seeds; None for a metric that is not defined with each of them."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None


def _headline(metrics: Mapping[str, Metrics]) -> list[str]:
    """Returns the accuracies to name first, of each split."""
    found = [(split, name, values.get(name)) for split, values in metrics.items() for name in headline(values)]
    return [f"{split} {name}={value:.4f}" for split, name, value in found if value is not None]


def _line(kind: str, *words: str) -> str:
    return printable(f"<{kind} {', '.join(words)}>")


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], notes: Iterable[str]) -> str:
    """Returns an HTML table with everything escaped; metrics of a fraction are shown as they are, to four digits."""
    columns = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = [_cells("th", ["", *columns])] if rows else []
    lines += [_cells("td", [name, *(values.get(column) for column in columns)]) for name, values in rows.items()]
    body = f"<table>{''.join(lines)}</table>" if lines else ""
    below = "".join(f"<div>{_text(note)}</div>" for note in notes if note)
    return f"<div><strong>{_text(title)}</strong>{body}{below}</div>"


def _cells(tag: str, values: Sequence[Any]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(value)}</{tag}>' for value in values)}</tr>"


def _text(value: Any) -> str:
    shown = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(printable(shown))
