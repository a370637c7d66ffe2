"""What a source of images is: a class that makes a :class:`Source` under the choices of a ``data`` section."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from ltcore.data.config import DataConfig
from ltcore.data.datasets.folder_layout import Layout
from ltcore.data.datasets.image_root import Files
from ltcore.data.shards.source import Indexed, Source
from ltcore.errors import ConfigError
from ltcore.owned_folder import TemporaryFolder

Lists = Sequence[tuple[str, str]]
"""(split, list file of ``path label`` lines, or table)."""


class Dataset(ABC):
    """One source, found and identified but not yet read.

    The class attributes say how it differs from the others, so that nobody else asks for its name.
    """

    by_path: ClassVar[bool] = False
    """``data.uri`` is the place of the images, and not the name of a published data set."""
    by_pattern: ClassVar[bool] = False
    """``data.uri`` may be a pattern too, so that only the source can tell whether there is anything."""
    has_selection: ClassVar[bool] = True
    """``data.imbalance_factor`` and ``data.subset`` choose its training images; otherwise its imbalance is its own."""
    has_folders: ClassVar[bool] = False
    """``data.classes_from`` says which of its folders are the classes."""
    has_columns: ClassVar[bool] = False
    """``data.image_column`` and its siblings say how its table is read."""
    has_label_key: ClassVar[bool] = False
    """``data.label_key`` says where its samples have their label."""
    places: ClassVar[tuple[str, ...]] = ()
    """Of ``PLACE_KEYS``, those that say where its files are."""
    is_generated: ClassVar[bool] = False
    """It is made out of nothing in seconds, so ``--fresh`` makes it again."""

    name: str
    """First part of the name of the folder that its shards go to."""
    identity: str
    """Changes with everything, beside the ``data`` section, that determines the samples."""

    broken: Mapping[str, str] = MappingProxyType({})
    """Images that :meth:`source` leaves out because they cannot be decoded: path -> problem."""
    copy: TemporaryFolder | None = None
    """Where its images are fetched to, which have to be there as long as they are read."""

    def __init__(self, cfg: DataConfig, *, lists: Lists = (), needs_train: bool = True) -> None:
        """Finds the data. Raises DataError or ConfigError where that is impossible.

        Args:
            cfg: of it ``uri`` and the keys that choose images, classes and splits matter here.
            lists: list files that say which images are used; only for images in a directory or zip.
            needs_train: refuse data without training images, which can only be evaluated on.
        """
        if lists:
            raise ConfigError(f"list files name images below a directory or in a zip; {cfg.uri} is neither.")
        if cfg.classes_from and not self.has_folders:
            raise ConfigError(f"data.classes_from={cfg.classes_from} is about folders of images; {cfg.uri} has none.")
        self.cfg, self.name, self.identity = cfg, cfg.uri, cfg.uri

    @staticmethod
    def recognizes(uri: str) -> bool:
        """Tells whether this source reads what lies at ``uri``; only those by path are asked, in the registry's order.

        It looks at the name and the kind of what is there, and no further.
        """
        return False

    @staticmethod
    def example(folder: str) -> str:
        """Writes a little of what this source reads into an empty folder, and returns its ``data.uri``.

        ``ltcore check`` reads it; of a source by path that writes none ('') it checks ``recognizes`` alone.
        """
        return ""

    def index(self, progress: Callable[[str], None] | None = None) -> Indexed | None:
        """Indexes the samples in the tars in which they are; None where they have to be written into shards.

        ``progress`` is called with a line of text about once a second.
        """
        return None

    def files(self) -> tuple[Files, Layout] | None:
        """Returns images that can be read in any order and by several processes, and which is of which class and split.

        None where there are only the samples of :meth:`source`.
        """
        return None

    @abstractmethod
    def source(self) -> Source:
        """Chooses the images of every split; the same ``data`` section gives the same ones."""
