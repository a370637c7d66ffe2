"""``evaluate`` with images: predictions as lines or as a table. Ray only where it is asked for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ltcore.cli.args import EvaluateArgs
from ltcore.cli.bar import progress
from ltcore.cli.entry import say
from ltcore.cli.evaluate import find_data
from ltcore.data.datasets.inputs import Inputs, in_store
from ltcore.data.datasets.prepare import is_shards
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import ConfigError
from ltcore.storage import local_path
from ltcore.text import counted, printable
from ltcore.training.predict import load, wanted_splits
from ltcore.training.prediction_table import Layout, write_predictions
from ltcore.training.predictions import Predictions, predict_items, predict_split
from ltcore.training.predictor import Predictor

Parts = Iterator[Predictions]


def predict(args: EvaluateArgs) -> int:
    """Predicts images and returns the exit code: 1 where an image could not be read.

    Its row says why, and the last line how many there are.
    """
    try:
        return _predict(args)
    except KeyboardInterrupt:  # there is nothing that the same command could continue
        say(f"interrupted; {args.output} was not written" if args.output else "interrupted")
        return 130


def _predict(args: EvaluateArgs) -> int:
    predictor = load(args.checkpoint, args.posthoc_tau, device="auto", tta=args.tta)
    shards = _shards(predictor, args)
    if shards is None:
        inputs = Inputs(args.images, predictor.classes)
        for remark in inputs.remarks:
            say(remark)
        parts = predict_items(predictor, inputs, top_k=args.top_k, logits=args.logits)
        return _deliver(args, predictor, parts, len(inputs), {"labels": inputs.labeled})
    store = ShardStore(shards, predictor.config.data.cache_bytes)
    splits = wanted_splits(predictor, store.manifest, shards, args.splits, args.protocols)
    total = sum(store.manifest.split(split).num_samples for split in splits)
    with _of_shards(args, predictor, store, splits) as parts:
        return _deliver(args, predictor, parts, total, {"labels": True, "dataset": True})


def _shards(predictor: Predictor, args: EvaluateArgs) -> str | None:
    """Returns the URI of the data set to predict; None where there are images alone."""
    if not args.images:
        return find_data(predictor, args.data, doing="predicting images of", reading=args.reading)
    uris = [word for word in args.images if (in_store(word) or local_path(word).is_dir()) and is_shards(word)]
    if uris and len(args.images) > 1:
        raise ConfigError(
            f"{uris[0]} holds shards. Give them alone, or with --data, for they are chosen from by --split."
        )
    if not uris and (args.splits or args.protocols):
        raise ConfigError(
            f"--split and --protocol choose images of a data set, and {args.images[0]} holds no shards. Give it with --data to "
            "have it split, or leave them out."
        )
    if not uris and args.engine == "ray":
        raise ConfigError(
            f"--engine ray predicts shards, and {args.images[0]} holds none. Make them with make_shards.py, or give it with "
            "--data, or leave --engine out."
        )
    return uris[0] if uris else None


@contextlib.contextmanager
def _of_shards(args: EvaluateArgs, predictor: Predictor, store: ShardStore, splits: Sequence[str]) -> Iterator[Parts]:
    options: dict[str, Any] = {"top_k": args.top_k, "logits": args.logits}
    if args.engine == "inline":
        yield (part for split in splits for part in predict_split(predictor, store, split, **options))
        return
    from ltcore.runtime.cluster import connect, disconnect
    from ltcore.runtime.ray_predict import predict_split_on_ray

    say(connect(debug=args.debug).describe())
    try:
        yield (part for split in splits for part in predict_split_on_ray(predictor, store, split, **options))
    finally:
        disconnect()


def _deliver(args: EvaluateArgs, predictor: Predictor, parts: Parts, total: int, columns: dict[str, bool]) -> int:
    """Writes or prints the predictions, shows how far they are, and returns the exit code."""
    tally, began = _Tally(), time.monotonic()
    if args.output:
        layout = Layout(predictor.classes, min(args.top_k, len(predictor.classes)), logits=args.logits, **columns)
        with progress("predicting", total) as advance:
            write_predictions(args.output, tally.count(parts, advance), layout, _about(predictor))
    else:
        for part in tally.count(parts):
            _print(predictor, part)
    if args.output or total > 1 or tally.failed:
        rate = tally.done / max(time.monotonic() - began, 1e-9)
        say(tally.summary(rate, args.output))
    if args.output:
        say(f"Predictions: {args.output}")
    return 1 if tally.failed else 0


def _about(predictor: Predictor) -> dict[str, Any]:
    return {
        "run": predictor.config.name,
        "checkpoint": predictor.place,
        "data_hash": predictor.data_hash,
        "classes": list(predictor.classes),
        "posthoc_tau": predictor.posthoc_tau,
        "tta": predictor.tta,
    }


def _print(predictor: Predictor, part: Predictions) -> None:
    for n, (file, error) in enumerate(zip(part.files, part.errors, strict=True)):
        if error is not None:
            say(error)
            continue
        best = zip(part.classes_Bk[n].tolist(), part.probabilities_Bk[n].tolist(), strict=True)
        cells = [f"{printable(predictor.classes[c])}\t{probability:.4f}" for c, probability in best]
        print("\t".join([printable(file), *cells]), flush=True)


class _Tally:
    """Counts predictions on their way."""

    def __init__(self) -> None:
        self.done = self.failed = 0
        self._first = ""

    def count(self, parts: Parts, advance: Callable[[int], None] = lambda _: None) -> Parts:
        for part in parts:
            errors = [error for error in part.errors if error is not None]
            self._first = self._first or next(iter(errors), "")
            self.done += len(part)
            self.failed += len(errors)
            yield part
            advance(len(part))

    def summary(self, rate: float, output: str | None) -> str:
        images = counted(self.done, "image")
        text = f"{images} ({rate:,.0f}/s): {self.done - self.failed:,} predicted, {self.failed:,} failed"
        if output and self.failed:
            text += f" (column error), the first: {self._first}"
        return text
