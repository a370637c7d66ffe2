"""The page of ``ltcore retrieve``: queries with their neighbors, classes that share parts, prototypes with their patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcore.data.loading.samples import BadSamples, decode_rows
from ltcore.data.shards.reader import ShardStore
from ltcore.evaluation.retrieval import ClassPair, Patch, Query, Retrieval
from ltcore.reporting.pictures import jpeg_uri
from ltcore.reporting.report import write_page
from ltcore.text import printable

if TYPE_CHECKING:
    from PIL import Image

    from ltcore.data.images.decode import Pixels

IMAGE_PX, PATCH_PX = 96, 80
"""Sides of the pictures in the page, which are shown a little smaller."""
CONTEXT = 0.5
"""Least side of the crop around a patch, as a fraction of the image: a cell alone is too small to recognize."""
_CELLS = 3
"""Least side of the crop around a patch, in sides of the patch."""
CENTERINGS = {
    "centered": "how often each prototype is the nearest one in it, less the mean over the classes",
    "raw": "how often each prototype is the nearest one in it",
    "pmi": "the logarithm of how often each prototype is the nearest one in it, relative to the mean over the classes",
}


@dataclass(frozen=True)
class NamedClass:
    """A class as a page names it."""

    name: str
    group: str


@dataclass(frozen=True)
class NeighborView:
    """A neighbor with its picture."""

    source: str
    key: str
    of: NamedClass
    similarity: float
    same: bool


@dataclass(frozen=True)
class PatchView:
    """The surroundings of a patch, and the patch as percentages of them."""

    source: str
    key: str
    of: NamedClass
    activation: float
    frame: str
    """CSS of the frame around the patch."""


def write_retrieval(found: Retrieval, out: str | Path) -> Path:
    """Writes the page and returns its path. Equal findings give equal bytes.

    Raises DataError where the images cannot be read.
    """
    return write_page("retrieve.html.j2", retrieve_page(found), Path(out))


def retrieve_page(found: Retrieval) -> dict[str, Any]:
    """Returns what the template shows."""
    images = _Images(found)
    queries = [_query(query, images) for query in found.queries]
    prototypes = [
        {
            "number": prototype.number,
            "share": prototype.share,
            "classes": [(images.named(c), share) for c, share in prototype.classes],
            "patches": [images.patch(patch) for patch in prototype.patches],
        }
        for prototype in found.prototypes[: found.num_shown]
    ]
    described = [query for query in found.queries if query.neighbors and query.label is not None]
    total = sum(len(query.neighbors) for query in described)
    named = {part.prototype for pair in (*found.pairs, *found.borrowed) for part in pair.parts}
    return {
        "title": f"Attributes of {printable(found.run)}",
        "run": printable(found.run),
        "data": printable(found.data_name),
        "found": found,
        "definition": CENTERINGS[found.centering],
        "same": sum(query.same_class for query in described),
        "total": total,
        "queries": queries,
        "prototypes": prototypes,
        "parts": {p.number: images.patch(p.patches[0]) for p in found.prototypes if p.number in named},
        "shown": {p["number"] for p in prototypes},
        "pairs": [_pair(pair, images) for pair in found.pairs],
        "borrowed": _by_first(found.borrowed, images),
    }


class _Images:
    """Pictures of the searched images."""

    def __init__(self, found: Retrieval) -> None:
        self._found = found
        store = ShardStore(found.data)
        self._keys = store.keys(found.split)
        wanted = {n.index for query in found.queries for n in query.neighbors}
        for place, prototype in enumerate(found.prototypes):
            wanted |= {p.index for p in (prototype.patches if place < found.num_shown else prototype.patches[:1])}
        # What cannot be decoded is replaced by the same image as in the search.
        bad = BadSamples(len(wanted), tell=False)
        self._canvases: dict[int, Pixels] = {
            index: decode_rows(store, found.split, np.array([index]), found.image_size, bad, found.framing)[0]
            for index in sorted(wanted)
        }

    def named(self, label: int) -> NamedClass:
        return NamedClass(printable(self._found.classes[label]), self._found.shot_groups[label])

    def key(self, index: int) -> str:
        return printable(self._keys[index])

    def whole(self, index: int) -> str:
        return picture(self._canvases[index])

    def patch(self, patch: Patch) -> PatchView:
        image = _image(self._canvases[patch.index])
        top, left, height, width = patch.box
        tall, wide = (min(1.0, max(CONTEXT, _CELLS * side)) for side in (height, width))
        y, x = (
            min(max(at + side / 2 - whole / 2, 0.0), 1 - whole)
            for at, side, whole in ((top, height, tall), (left, width, wide))
        )
        size = image.width
        area = (size * x, size * y, size * (x + wide), size * (y + tall))
        crop = image.resize((PATCH_PX, PATCH_PX), _bicubic(), box=area)
        places = {"top": (top - y) / tall, "left": (left - x) / wide, "height": height / tall, "width": width / wide}
        frame = ";".join(f"{name}:{100 * value:.2f}%" for name, value in places.items())
        return PatchView(jpeg_uri(crop), self.key(patch.index), self.named(patch.label), patch.activation, frame)


def picture(canvas_3SS: Pixels) -> str:
    """Returns an image of at most ``IMAGE_PX`` a side as a ``data:`` URI."""
    from PIL import Image

    image = _image(canvas_3SS)
    image.thumbnail((IMAGE_PX, IMAGE_PX), Image.Resampling.LANCZOS)
    return jpeg_uri(image)


def _image(canvas_3SS: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(canvas_3SS.transpose(1, 2, 0)))


def _bicubic() -> Any:
    from PIL import Image

    return Image.Resampling.BICUBIC


def _query(query: Query, images: _Images) -> dict[str, Any]:
    return {
        "source": picture(query.canvas_3SS),
        "key": printable(query.name),
        "of": None if query.label is None else images.named(query.label),
        "same": query.same_class,
        "neighbors": [
            NeighborView(
                images.whole(n.index), images.key(n.index), images.named(n.label), n.similarity, n.label == query.label
            )
            for n in query.neighbors
        ],
    }


def _pair(pair: ClassPair, images: _Images) -> dict[str, Any]:
    return {"first": images.named(pair.first), "second": images.named(pair.second), "pair": pair}


def _by_first(pairs: Iterable[ClassPair], images: _Images) -> list[dict[str, Any]]:
    """Returns a row for each pair; only the first row of a class names it."""
    rows, before = [], -1
    for pair in pairs:
        rows.append({**_pair(pair, images), "new": pair.first != before})
        before = pair.first
    return rows
