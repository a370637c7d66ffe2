"""Images encoded anew on their way into shards, where that is asked for; without it shards hold the files as they are.

Large photographs cost reading and decoding in every epoch that a smaller copy does not. What is lost is lost: the originals
are not in the shards. The same image and options give the same bytes for equal versions of the libraries.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ltcore.data.config import MAX_IMAGE_SIZE
from ltcore.errors import one_of, within

if TYPE_CHECKING:  # the command line reads its flags without numpy
    from ltcore.data.shards.source import Description, Sample

FORMATS = ("jpg", "png", "webp")
QUALITY = 90
"""Of jpg and webp where none is given."""
PROVENANCE = "reencoded"
"""Key of the provenance: how images were encoded anew."""
_D = TypeVar("_D", bound="Description")


@dataclass(frozen=True, kw_only=True)
class Reencode:
    """How images are written anew: upright, 8-bit RGB, without metadata."""

    format: str
    """One of ``FORMATS``."""
    quality: int | None = None
    """1 to 100, of jpg and webp; None: 90."""
    short_side: int | None = None
    """Most pixels of the shorter side; larger images are scaled down to it, others keep their size. None: all keep it."""

    def __post_init__(self) -> None:
        one_of(FORMATS, reencode=self.format)
        within("[1, 100]", quality=self.quality)
        within(f"[1, {MAX_IMAGE_SIZE}]", short_side=self.short_side)
        if self.format == "png" and self.quality is not None:
            raise ValueError(f"quality={self.quality} does not go with reencode=png, which loses nothing: leave it out")

    def __call__(self, sample: Sample, where: str) -> Sample:
        """Returns the sample with its image encoded anew. ``where`` names it in the DataError of a broken image."""
        from PIL import Image

        from ltcore.data.images.decode import decode_image, resample, size_of

        image_3HW = decode_image(sample.image, where)
        height, width = size_of(image_3HW)
        if self.short_side is not None and min(height, width) > self.short_side:
            scale = self.short_side / min(height, width)
            image_3HW = resample(image_3HW, (0, 0, height, width), (round(height * scale), round(width * scale)))
        out, quality = io.BytesIO(), {} if self.format == "png" else {"quality": self.quality or QUALITY}
        kind = "JPEG" if self.format == "jpg" else self.format.upper()
        Image.fromarray(image_3HW.transpose(1, 2, 0)).save(out, kind, **quality)
        return replace(sample, image=out.getvalue(), ext=self.format)

    def described(self, source: _D) -> _D:
        """Returns what is known of the samples together, after they were encoded anew."""
        said: dict[str, Any] = {key: value for key, value in asdict(self).items() if value is not None}
        size = source.image_size if self.short_side is None else min(source.image_size, self.short_side)
        return replace(source, image_size=size, provenance={**source.provenance, PROVENANCE: said})
