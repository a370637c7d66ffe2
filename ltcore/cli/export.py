"""``export`` and ``card``: a trained classifier as one file for other programs, and in words for people."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ltcore import rng
from ltcore.cli.args import CardArgs, ExportArgs
from ltcore.cli.entry import say
from ltcore.data.datasets.inputs import Inputs
from ltcore.data.datasets.prepare import is_shards
from ltcore.data.shards.reader import ShardStore
from ltcore.errors import DataError
from ltcore.reporting.card import model_card
from ltcore.storage import is_local, write_bytes_atomic
from ltcore.text import printable
from ltcore.training.export import about, export, refuse_format
from ltcore.training.predict import load
from ltcore.training.predictor import Predictor

RANDOM, REAL = 8, 64
"""Random images, and most real ones, on which the file is compared with the checkpoint."""


def run_export(args: ExportArgs) -> None:
    """Exports a classifier, compares the file with the checkpoint, and writes the model card beside it."""
    refuse_format(args.file)
    predictor = load(args.checkpoint, args.posthoc_tau, tta=args.tta)
    real, source = _real_images(predictor, args.images)
    noise = torch.randint(
        0, 256, (RANDOM, 3, predictor.image_size, predictor.image_size), generator=rng.generator(0, "export")
    )
    say(f"exporting {predictor.place}")
    difference = export(predictor, args.file, torch.cat([noise.byte(), real]))
    print(f"Model: {printable(args.file)}")
    print(
        f"Checked on {RANDOM} random images and {len(real)} {source}: its logits differ from those of the checkpoint by at most "
        f"{difference:.2g}."
    )
    card = str(PurePosixPath(args.file).with_suffix(".md"))
    try:
        text = model_card(args.checkpoint, {"name": PurePosixPath(args.file).name, **about(predictor)})
    except DataError as error:
        say(f"no model card: {error}")
        return
    write_bytes_atomic(card, text.encode())
    print(f"Model card: {printable(card)}")


def run_card(args: CardArgs) -> None:
    """Prints the model card of a run, or writes it to a file."""
    text = model_card(args.run)
    if args.output is None:
        print(text, end="")
        return
    write_bytes_atomic(args.output, text.encode())
    print(f"Model card: {printable(args.output)}")


def _real_images(predictor: Predictor, words: tuple[str, ...]) -> tuple[Tensor, str]:
    """Returns up to ``REAL`` uint8 images that were given, else those of training's data, and says which."""
    size = predictor.image_size
    if words:
        items = itertools.islice(Inputs(words, predictor.classes), REAL)
        return _stacked((predictor.decode(item.read(), item.file) for item in items), size), "given images"
    uri = predictor.config.data.uri
    if is_local(uri) and is_shards(uri):
        store = ShardStore(uri)
        if store.manifest.hash == predictor.data_hash:
            split = next((s for s in store.manifest.splits if s.startswith("test")), predictor.config.data.train_split)
            rows = store.read_rows(split, np.arange(min(REAL, store.manifest.split(split).num_samples)))
            return _stacked((predictor.decode(row, f"{uri}, {split}") for row in rows), size), f"images of {split}"
    return _stacked((), size), "real ones (give some as arguments)"


def _stacked(canvases: Iterable[np.ndarray], size: int) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros((0, 3, size, size), np.uint8), *(c[None] for c in canvases)]))
