"""What the configurations of several losses have in common."""

from __future__ import annotations

from dataclasses import dataclass

from ltcore.errors import positive

COLD = 1.0


@dataclass(frozen=True, kw_only=True)
class Tempered:
    """Options of losses with a temperature."""

    temperature: float = COLD
    """Divides the logits. Range > 0."""

    def __post_init__(self) -> None:
        positive(temperature=self.temperature)
