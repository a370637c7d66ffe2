"""Every source of images by name.

A new source is one file with a :class:`Dataset` plus one line here: ``data.uri=<name>``, ``ltcore methods`` and the
contract tests follow. Sources by path have no name to be called by: the first one that recognizes a place reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltcore.data.config import DataConfig
from ltcore.data.datasets.cifar import Cifar
from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.digits_glt import DigitsGlt
from ltcore.data.datasets.image_folder import ImageFolder
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One source: what builds it and what it is."""

    build: type[Dataset]
    summary: str
    """What it holds, in one line."""
    paper: str
    """Where it comes from."""


PATH = "DIR|ZIP"
"""The row for every place that no other row recognizes."""

DATASETS: dict[str, Row] = {
    "digits-glt": Row(
        DigitsGlt, "colored digits, long-tailed in classes and colors, no download", "scikit-learn's digits"
    ),
    "cifar10": Row(
        Cifar, "10 classes of 5,000 images of 32 px", "Krizhevsky 2009; long tail of Cao et al., NeurIPS 2019"
    ),
    "cifar100": Row(
        Cifar, "100 classes of 500 images of 32 px", "Krizhevsky 2009; long tail of Cao et al., NeurIPS 2019"
    ),
    "TARS": Row(WebDataset, "tars that others wrote: a file, 'train-{000..099}.tar', '*.tar', a folder", "WebDataset"),
    PATH: Row(ImageFolder, "your images, by class folders or by list files (make_shards.py --list)", "-"),
}


def find(uri: str) -> type[Dataset]:
    """Finds the class that ``data.uri`` names; for every place, unseen, it is that of ``PATH``."""
    return DATASETS.get(uri, DATASETS[PATH]).build


def recognize(uri: str) -> type[Dataset]:
    """Finds the class that makes shards of what ``data.uri`` names, by a look at it where it is a place."""
    if not find(uri).by_path:
        return find(uri)
    by_path = (row.build for row in DATASETS.values() if row.build.by_path)
    return next((build for build in by_path if build.recognizes(uri)), DATASETS[PATH].build)


def names() -> list[str]:
    """Lists the sources that are named rather than found at a path."""
    return [name for name, row in DATASETS.items() if not row.build.by_path]


def on_other_data(cfg: DataConfig, uri: str) -> DataConfig:
    """Points a ``data`` section at other data, without the selection made from its own.

    Between published data sets the selection carries over; from a user's photos it would discard most. Raises ConfigError
    for a URI that no data can have.
    """
    kept = cfg if uri == cfg.uri or not find(uri).by_path else replace(cfg, imbalance_factor=None, subset="keyed")
    try:
        return replace(kept, uri=uri)
    except ValueError as error:
        raise ConfigError(f"data.{error}.") from None
