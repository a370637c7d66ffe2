"""How a whole image is brought to a square canvas: what is known of it everywhere, the data's side does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

INTERPOLATIONS = ("bilinear", "bicubic")
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Framing:
    """How a whole image is brought to a square canvas of S px.

    The defaults are our own way: the largest centered square is cut out, then resized bilinearly by torch. Anything else is
    timm's way, pixel for pixel: the image is resized by PIL to S / ``crop_fraction``, then the center of S px is cut out.
    """

    interpolation: str | None = None
    """One of ``INTERPOLATIONS``; None is bilinear, and torch's where nothing else differs from the defaults."""
    crop_fraction: float = 1.0
    """S as a share of the side that the image is resized to; above 1, what is missing is filled."""
    crop_mode: str = "center"
    """What gets that side: the short side ('center'), both ('squash'), or the long one, filled beside it ('border')."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """Color of what is filled."""

    @classmethod
    def of(
        cls, interpolation: str | None, crop_fraction: float | None, crop_mode: str | None, mean: Sequence[float]
    ) -> Framing:
        """Returns the framing of values that may be null; borders are filled with the color ``mean``, in [0, 1]."""
        mode = crop_mode or "center"
        red, green, blue = (round(255 * value) for value in mean) if mode == "border" else (0, 0, 0)
        return cls(interpolation, crop_fraction or 1.0, mode, (red, green, blue))

    @property
    def of_cache(self) -> str:
        """Returns what tells cached pixels of this framing apart in a file's name; '' of our own way."""
        if self == Framing():
            return ""
        fill = "" if self.fill == (0, 0, 0) else "-" + "".join(f"{value:02x}" for value in self.fill)
        return f"-{self.interpolation or 'bilinear'}-{self.crop_fraction!r}-{self.crop_mode}{fill}"

    def of_canvas(self, side: int) -> str:
        """Returns what becomes of an image on a canvas of ``side`` px, as a main clause."""
        if self == Framing():
            return (
                f"the largest centered square is resized to {side} px, bilinearly and with antialiasing. What lies outside of "
                "that square is not seen"
            )
        which = {"center": "the short side is", "squash": "both sides are", "border": "the long side is"}[
            self.crop_mode
        ]
        what = f"{which} resized to {math.floor(side / self.crop_fraction)} px, {self.interpolation or 'bilinear'} as PIL does it"
        filled = self.crop_mode == "border" or self.crop_fraction > 1
        rest = f", on a ground of RGB {' '.join(map(str, self.fill))}" if filled else ""
        return f"{what}, and the center of {side} px is cut out{rest}"


OWN_WAY = Framing()
"""The largest centered square, resized bilinearly by torch."""
