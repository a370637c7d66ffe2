"""Parts of one's own without a fork: losses, networks, data sets, augmentations, samplers, metrics and others.

    from ltcore import plugins

    @plugins.loss("my_loss", summary="what it does, in one line", paper="where it is from")
    class MyLoss(ltcore.Base):
        @dataclass(frozen=True, kw_only=True)
        class Config:
            temperature: float = 1.0
            \"\"\"Divides the logits. Range > 0.\"\"\"

The module is a plugin as soon as a recipe names it (``plugins: [my_package.my_loss]``), a command does (``--plugin``), or its
distribution has entry points of the groups ``ltcore.losses``, ``ltcore.terms`` and so on. Keys, help, completion, ``ltcore
methods`` and checks follow from the decorator and the ``Config``, which are read from the source text.
"""

from typing import TYPE_CHECKING

from ltcore.lazy import lazy

if TYPE_CHECKING:
    from ltcore.plugins.parts import augmentation as augmentation
    from ltcore.plugins.parts import callback as callback
    from ltcore.plugins.parts import dataset as dataset
    from ltcore.plugins.parts import loss as loss
    from ltcore.plugins.parts import metric as metric
    from ltcore.plugins.parts import model as model
    from ltcore.plugins.parts import sampler as sampler
    from ltcore.plugins.parts import stage2 as stage2
    from ltcore.plugins.parts import term as term

__all__ = ["augmentation", "callback", "dataset", "loss", "metric", "model", "sampler", "stage2", "term"]

__getattr__ = lazy(__name__, dict.fromkeys(__all__, "ltcore.plugins.parts"))
