"""BBN, bilateral-branch network: from learning the natural stream to learning one in which rare classes come most.

    s_i = W 2 [l f_i ; (1 - l) g_i]
    L_i = l CE(s_i, y_i) + (1 - l) CE(s_i, y'_i),    l = 1 - progress^2

f_i are the first branch's features of an image of the natural stream, g_i the second branch's of one whose class was chosen in
proportion to 1 / n_c; y_i and y'_i are their labels. The branches are the last residual block, all before it is shared. In
evaluation an image goes through both, with l = 1/2.

Source: Zhou et al., "BBN: bilateral-branch network with cumulative learning for long-tailed visual recognition", CVPR 2020.
Differs: l falls with every step, theirs with every epoch e of E as 1 - (e / E)^2, and GLT's code as 1 - ((e - 1) / E)^2. The
mixing of features is ``LongTailNet.of_pairs``, that of labels the one of mixed images, the second stream
``ltcore.data.loading.pairs``. Each branch's images pass the trunk on their own, with batch statistics of their own, as in the
authors' code. Terms are defined for features of one image and do not go with it.
Shapes: logits [B, C] of B pairs -> loss [B].
Cost: two images for one in training, B pairs to a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ltcore.batch import ModelOutput
from ltcore.objective.dims import widened
from ltcore.objective.interface import Base, LossContext


class Bbn(Base):
    """Cross-entropy of logits of mixed features, once for the label of each image of the pair."""

    pairs = True
    label_mix = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options: the share falls from 1 to 0 over the training."""

    @staticmethod
    def pair_share(progress: float) -> float:
        """Returns 1 - progress^2: 1 at the beginning, 0.75 at half, 0 at the end."""
        return 1 - progress**2

    @staticmethod
    def balances(cfg: Config) -> str:
        return "trains half of its features on a stream in which rare classes come most"

    def forward(self, out: ModelOutput, labels_B: Tensor, ctx: LossContext) -> Tensor:
        """Returns the cross-entropy [B] with one label of each pair."""
        return F.cross_entropy(widened(out.mean_logits_BC), labels_B, reduction="none")
