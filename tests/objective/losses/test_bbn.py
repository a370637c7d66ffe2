"""BBN: the share by hand, and a whole step against the paper's equations."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from ltcore.config.schema import RunConfig
from ltcore.errors import ConfigError
from ltcore.models.backbones import pool
from ltcore.objective.losses.bbn import Bbn
from tests.training.runs import tiny_run

BBN = {"objective.base": "bbn", "model.bilateral": True}


def test_the_share_falls_as_a_parabola() -> None:
    """The paper's values at epochs 0, 50 and 99 of 100."""
    assert [Bbn.pair_share(e / 100) for e in (0, 50, 99)] == pytest.approx([1, 0.75, 0.0199])


def test_what_it_does_not_go_with() -> None:
    def words(**changes: object) -> str:
        with pytest.raises(ConfigError) as caught:
            RunConfig(name="bbn").replace({key.replace("__", "."): value for key, value in changes.items()})
        return str(caught.value)

    bbn = {"objective__base": "bbn", "model__bilateral": True}
    assert words(objective__base="bbn").startswith("model.bilateral=false does not go with objective.base=bbn")
    assert words(model__bilateral=True).startswith("model.bilateral=true does not go with objective.base=cross_entropy")
    assert "model.bilateral=true needs num_experts=1" in words(model__bilateral=True, model__num_experts=3)
    for term in ("lpa", "dro", "ifl"):
        assert words(**bbn, **{f"objective__terms__{term}": "on"}).startswith(
            f"objective.terms.{term} does not go with"
        )
    assert "which brings a second stream" in words(**bbn, train__sampling="progressive")
    assert "which trains half of its features on a stream" in words(**bbn, stage2__method="crt")
    assert tiny_run(**BBN, train__accumulate=2).train.accumulate == 2


def test_a_step_is_that_of_the_paper(tiny_shards: str) -> None:
    from ltcore.data.loading.factory import make_loader
    from ltcore.training.build import build, stream_options
    from ltcore.training.context import LocalContext

    cfg = tiny_run(**BBN)
    loader = make_loader(cfg.data, tiny_shards, batch_size=8, seed=0, **stream_options(cfg))
    parts = build(cfg, loader, LocalContext(torch.device("cpu")))
    batch = parts.augment(next(loader.train_batches(0)), 0)
    loader.close()
    loss, values, out = parts.step(batch, 0.6)
    net, images, labels_B = parts.step.net, batch.images_VBCHW[0], batch.labels_B
    trunk, (head,) = net.backbone.trunk, net.heads
    first_BD, second_BD = (pool(net.backbone.branches[n](trunk(images[n::2]))) for n in (0, 1))
    share = 1 - 0.6**2
    logits_BC = 2 * (share * first_BD @ head.weight[:, :64].T + (1 - share) * second_BD @ head.weight[:, 64:].T)
    expected = share * cross_entropy(logits_BC, labels_B[0::2]) + (1 - share) * cross_entropy(logits_BC, labels_B[1::2])
    torch.testing.assert_close(loss, expected)
    assert values.keys() == {"base"} and out.logits_BC.shape == (8, 4) and out.features_BD.shape == (8, 128)
