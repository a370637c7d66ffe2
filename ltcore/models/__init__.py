"""Networks: backbones, heads, and the copies that averages and key encoders keep."""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.models.backbones import Backbone as Backbone
    from ltcore.models.net import LongTailNet as LongTailNet
    from ltcore.models.net import ModelConfig as ModelConfig
    from ltcore.models.registry import MODELS as MODELS

__all__ = ["MODELS", "Backbone", "LongTailNet", "ModelConfig"]

__getattr__ = lazy(
    __name__,
    {
        "Backbone": "ltcore.models.backbones",
        "LongTailNet": "ltcore.models.net",
        "MODELS": "ltcore.models.registry",
        "ModelConfig": "ltcore.models.net",
    },
)
