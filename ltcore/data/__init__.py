"""Images on their way to the training loop: data sets, shards, loaders, augmentation."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.data.augment.augment import Augment as Augment
    from ltcore.data.augment.config import AugmentConfig as AugmentConfig
    from ltcore.data.config import DataConfig as DataConfig
    from ltcore.data.datasets.prepare import prepare as prepare
    from ltcore.data.loading.factory import make_loader as make_loader
    from ltcore.data.loading.loader import Loader as Loader
    from ltcore.data.shards.manifest import Manifest as Manifest
    from ltcore.data.shards.manifest import read_manifest as read_manifest
    from ltcore.data.shards.reader import ShardStore as ShardStore
    from ltcore.data.shards.source import Sample as Sample
    from ltcore.data.shards.source import Source as Source
    from ltcore.data.shards.validate import check_dataset as check_dataset
    from ltcore.data.shards.writer import write_dataset as write_dataset

__all__ = [
    "Augment",
    "AugmentConfig",
    "DataConfig",
    "Loader",
    "Manifest",
    "Sample",
    "ShardStore",
    "Source",
    "check_dataset",
    "make_loader",
    "prepare",
    "read_manifest",
    "write_dataset",
]

__getattr__ = lazy(
    __name__,
    {
        "Augment": "ltcore.data.augment.augment",
        "AugmentConfig": "ltcore.data.augment.config",
        "DataConfig": "ltcore.data.config",
        "Loader": "ltcore.data.loading.loader",
        "Manifest": "ltcore.data.shards.manifest",
        "Sample": "ltcore.data.shards.source",
        "ShardStore": "ltcore.data.shards.reader",
        "Source": "ltcore.data.shards.source",
        "check_dataset": "ltcore.data.shards.validate",
        "make_loader": "ltcore.data.loading.factory",
        "prepare": "ltcore.data.datasets.prepare",
        "read_manifest": "ltcore.data.shards.manifest",
        "write_dataset": "ltcore.data.shards.writer",
    },
)
