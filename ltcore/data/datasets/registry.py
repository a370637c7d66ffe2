"""Every source of images by name.

A new source is one file with a :class:`Dataset` plus one line here: ``data.uri=<name>``, ``ltcore methods`` and the
contract tests follow. Sources by path have no name to be called by: the first one that recognizes a place reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ltcore.data.config import COLUMN_KEYS, PLACE_KEYS, DataConfig
from ltcore.data.datasets.cifar import Cifar
from ltcore.data.datasets.cifar100_glt import Cifar100Glt
from ltcore.data.datasets.dataset import Dataset
from ltcore.data.datasets.digits_glt import DigitsGlt
from ltcore.data.datasets.image_folder import ImageFolder
from ltcore.data.datasets.mnist_glt import MnistGlt
from ltcore.data.datasets.mscoco_glt import MscocoGlt
from ltcore.data.datasets.parquet import Parquet
from ltcore.data.datasets.remote import RemoteFolder, RemoteZip
from ltcore.data.datasets.tables import Table
from ltcore.data.datasets.web_dataset import WebDataset
from ltcore.errors import ConfigError
from ltcore.plugins.aside import refuse
from ltcore.plugins.generated import add_row
from ltcore.plugins.loading import attach, known_parts, load, load_part, without_broken
from ltcore.plugins.parts import Part


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
    "cifar100-glt": Row(
        Cifar100Glt,
        "CIFAR-100's 20 superclasses, long-tailed in classes and in their fine classes",
        "Krizhevsky 2009; construction of Tang et al., ECCV 2022",
    ),
    "mnist-glt": Row(
        MnistGlt,
        "MNIST in ten pairs of colors, long-tailed in digits and in the colors of each",
        "LeCun et al. 1998; construction of Tang et al., ECCV 2022",
    ),
    "mscoco-glt": Row(
        MscocoGlt,
        "objects of MSCOCO, long-tailed in 29 categories and in attributes, of data.images and data.annotations",
        "Tang et al., ECCV 2022; COCO Attributes of Patterson and Hays, ECCV 2016",
    ),
    "LIST|CSV|TSV": Row(
        Table, "your images, as a list of 'path label', a table with a header or json as iNaturalist's names them", "-"
    ),
    "URI.zip": Row(RemoteZip, "a zip of your images in a store or in the web, fetched once", "-"),
    "PARQUET": Row(Parquet, "your images in parquet files, as on the Hugging Face Hub, or paths to them", "-"),
    "TARS": Row(WebDataset, "tars that others wrote: a file, 'train-{000..099}.tar', '*.tar', a folder", "WebDataset"),
    "URI": Row(RemoteFolder, "a folder of your images in a store: s3://, gs://, abfs://, hf://", "-"),
    PATH: Row(ImageFolder, "your images, by class folders or by lists and tables (make_shards.py --list)", "-"),
}


def find(uri: str) -> type[Dataset]:
    """Finds the class that ``data.uri`` names; for every place, unseen, it is that of ``PATH``."""
    load_part("dataset", uri)
    if uri not in DATASETS:
        refuse("dataset", uri)
    return DATASETS.get(uri, DATASETS[PATH]).build


def recognize(uri: str) -> type[Dataset]:
    """Finds the class that makes shards of what ``data.uri`` names, by a look at it where it is a place."""
    if not find(uri).by_path:
        return find(uri)
    _load_plugins()
    by_path = (row.build for row in DATASETS.values() if row.build.by_path)
    return next((build for build in by_path if build.recognizes(uri)), DATASETS[PATH].build)


def names() -> list[str]:
    """Lists the sources that are named rather than found at a path."""
    _load_plugins()
    return [name for name, row in DATASETS.items() if not row.build.by_path]


def on_other_data(cfg: DataConfig, uri: str) -> DataConfig:
    """Points a ``data`` section at other data, without the selection made from its own.

    Between published data sets the selection carries over; from a user's photos it would discard most. Raises ConfigError
    for a URI that no data can have.
    """
    kept = cfg if uri == cfg.uri or not find(uri).by_path else replace(cfg, imbalance_factor=None, subset="auto")
    try:
        kept = replace(kept, uri=uri)
    except ValueError as error:
        raise ConfigError(f"data.{error}.") from None
    given = [key for key in (*_READ_BY, *PLACE_KEYS) if getattr(kept, key) is not None]
    if not given:
        return kept
    build = recognize(uri)
    read = (*(key for key, reads in _READ_BY.items() if getattr(build, reads)), *build.places)
    without: dict[str, Any] = {key: None for key in given if key not in read}
    return replace(kept, **without)


_READ_BY = {**dict.fromkeys(COLUMN_KEYS, "has_columns"), "classes_from": "has_folders", "label_key": "has_label_key"}
"""Key that says how some sources are read -> the attribute of those."""


def _load_plugins() -> None:
    """Imports all known plugins with sources, of which any may recognize a place."""
    without_broken(
        lambda: load(dict.fromkeys(plugin for (kind, _), (plugin, _) in known_parts().items() if kind == "dataset"))
    )


def _add(part: Part) -> None:
    add_row(DATASETS, part.kind, part.name, Row(part.build, part.summary, part.paper))
    DATASETS[PATH] = DATASETS.pop(PATH)  # the row for what no other recognizes stays the last


attach("dataset", _add)
