"""Local vectors of layers and scales against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ltcore.batch import ModelOutput
from ltcore.errors import ConfigError
from ltcore.objective.dims import FeatureDims
from ltcore.objective.terms.lpa.local_features import channels_of, local_vectors, location_boxes, needs_of

GEN = torch.Generator().manual_seed(0)
FINAL = torch.randn(2, 5, 3, 4, generator=GEN, dtype=torch.float64)
STAGES = {
    "stage1": torch.randn(2, 3, 12, 16, generator=GEN, dtype=torch.float64),
    "stage2": torch.randn(2, 4, 6, 8, generator=GEN, dtype=torch.float64),
}
OUT = ModelOutput(torch.zeros(2, 1), torch.zeros(2, 5), fmap_BDhw=FINAL, stage_fmaps_BDhw=STAGES)


def block_mean(fmap_Dhw: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return fmap_Dhw[:, top : top + height, left : left + width].flatten(1).mean(1)


def test_the_final_map_gives_its_columns() -> None:
    vectors = local_vectors(OUT, ["final"], [1])
    assert vectors.shape == (2, 12, 5)
    assert torch.equal(vectors[1, 4 * 2 + 3], FINAL[1, :, 2, 3])


def test_an_earlier_map_gives_its_own() -> None:
    vectors = local_vectors(OUT, ["stage1"], [1])
    assert vectors.shape == (2, 12 * 16, 3)
    assert torch.equal(vectors[0, 16 * 5 + 2], STAGES["stage1"][0, :, 5, 2])


def test_several_layers_lie_side_by_side_on_the_coarsest_grid_at_unit_length() -> None:
    vectors = local_vectors(OUT, ["stage1", "final"], [1])
    assert vectors.shape == (2, 12, 8)
    early = block_mean(STAGES["stage1"][1], 4, 12, 4, 4)
    torch.testing.assert_close(vectors[1, 4 * 1 + 3, :3], normalize(early, dim=0))
    torch.testing.assert_close(vectors[1, 4 * 1 + 3, 3:], normalize(FINAL[1, :, 1, 3], dim=0))


def test_scales_add_the_means_of_windows() -> None:
    vectors = local_vectors(OUT, ["final"], [1, 2, 9])
    assert vectors.shape == (2, 12 + 2 + 1, 5)
    torch.testing.assert_close(vectors[0, 12], block_mean(FINAL[0], 0, 0, 2, 2))
    torch.testing.assert_close(vectors[0, 13], block_mean(FINAL[0], 0, 2, 2, 2))  # the third row is left out
    torch.testing.assert_close(vectors[0, 14], FINAL[0].mean((1, 2)))


def test_half_types_become_float32() -> None:
    half = ModelOutput(torch.zeros(2, 1), torch.zeros(2, 5), fmap_BDhw=FINAL.bfloat16())
    assert local_vectors(half, ["final"], [1, 2]).dtype == torch.float32


def test_what_layers_ask_for_and_how_long_their_vectors_are() -> None:
    dims = FeatureDims(5, 4, 10, {"stage1": 3, "stage2": 4})
    assert needs_of(["final", "stage2"]) == {"fmap", "fmap/stage2"}
    assert [channels_of(layers, dims) for layers in (["final"], ["stage2", "final"], ["stage1"])] == [5, 9, 3]
    with pytest.raises(ConfigError, match="stage3"):
        channels_of(["stage3"], dims)


@pytest.mark.parametrize("layers", [["final"], ["stage1", "final"]])
def test_boxes_say_where_each_vector_comes_from(layers: list[str]) -> None:
    boxes_P4 = location_boxes(OUT, layers, [1, 2, 9])
    assert len(boxes_P4) == local_vectors(OUT, layers, [1, 2, 9]).shape[1] == 12 + 2 + 1
    assert torch.equal(boxes_P4[5], torch.tensor([1 / 3, 1 / 4, 1 / 3, 1 / 4], dtype=torch.float64))
    assert torch.equal(boxes_P4[13], torch.tensor([0, 1 / 2, 2 / 3, 1 / 2], dtype=torch.float64))
    assert torch.equal(boxes_P4[14], torch.tensor([0, 0, 1, 1], dtype=torch.float64))
