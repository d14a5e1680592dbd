"""Layers by themselves, against loops and torch, and the windows that overhang."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_alexnet.network.layers import ConvLayer, kept, response_norm, spatial_norm, widened
from dist_alexnet.network.spec import Conv, ResponseNorm, SpatialNorm
from dist_alexnet.parallel.mesh import Mesh
from tests.network.plain import word


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 40


def norm_by_loop(x: Tensor, norm: ResponseNorm, columns: int) -> Tensor:
    out = torch.empty_like(x)
    maps = x.shape[1] // columns
    alpha = norm.alpha / norm.size if norm.convention == "mean" else norm.alpha
    for channel in range(x.shape[1]):
        first = channel // maps * maps
        low, high = channel - norm.size // 2, channel - norm.size // 2 + norm.size
        window = range(max(first, low), min(first + maps, high))
        total = sum(x[:, other] ** 2 for other in window)
        out[:, channel] = x[:, channel] / (norm.k + alpha * total) ** norm.beta
    return out


@pytest.mark.parametrize("convention", ["mean", "sum"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_response_norm_is_the_loop(convention: str, columns: int, size: int) -> None:
    norm = ResponseNorm.model_validate({"kind": "lrn", "size": size, "convention": convention})
    x = noise(2, 12, 3, 4)
    torch.testing.assert_close(response_norm(x, norm, columns), norm_by_loop(x, norm, columns), rtol=1e-12, atol=0)


def test_response_norm_is_torchs_inside_each_column() -> None:
    x = noise(2, 16, 5, 5)
    mean = ResponseNorm(kind="lrn", convention="mean")
    sums = ResponseNorm(kind="lrn", convention="sum")
    for norm, alpha in ((mean, 1e-4), (sums, 5e-4)):
        halves = [F.local_response_norm(half, 5, alpha, 0.75, 2.0) for half in x.chunk(2, 1)]
        torch.testing.assert_close(response_norm(x, norm, 2), torch.cat(halves, 1), rtol=1e-12, atol=0)
    assert not torch.allclose(response_norm(x, mean, 2), response_norm(x, mean, 1), rtol=1e-4)
    assert not torch.allclose(response_norm(x, mean, 2), response_norm(x, sums, 2), rtol=1e-4)


def test_spatial_norm_is_the_loop() -> None:
    x, norm = noise(2, 3, 7, 6), SpatialNorm(kind="spatial_norm")
    out = torch.empty_like(x)
    for row in range(7):
        for column in range(6):
            window = x[:, :, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            total = (window**2).sum((2, 3))
            out[:, :, row, column] = x[:, :, row, column] / (1 + 1e-3 / 25 * total) ** 0.75
    torch.testing.assert_close(spatial_norm(x, norm), out, rtol=1e-12, atol=0)


def test_norms_are_never_in_half_precision() -> None:
    x = noise(1, 8, 6, 6).to(torch.bfloat16)
    lrn, spatial = ResponseNorm(kind="lrn", convention="mean"), SpatialNorm(kind="spatial_norm")
    assert torch.equal(response_norm(x, lrn, 2), response_norm(x.float(), lrn, 2))
    assert torch.equal(spatial_norm(x, spatial), spatial_norm(x.float(), spatial))
    assert widened(x).dtype == torch.float32
    assert widened(noise(1)).dtype == torch.float64


def tap(mesh: Mesh, row: int, column: int) -> ConvLayer:
    """conv1 with one weight that is 1: its output shows which pixel stands under that tap."""
    weight = torch.zeros(1, 1, 11, 11)
    weight[0, 0, row, column] = 1
    layer = Conv(kind="conv", name="conv1", filters=1, kernel=11, stride=4, reads="all", init_sd=1)
    return ConvLayer(layer, weight, torch.zeros(1), 1, mesh)


def test_conv1_overhangs_at_the_right_and_the_bottom_only(alone: Mesh) -> None:
    """224 pixels give 55 windows: window i begins at pixel 4i, and the last one has 3 pixels of zeros at its end."""
    side = 224
    x = (1 + torch.arange(side * side, dtype=torch.float32)).view(1, 1, side, side)
    first = tap(alone, 0, 0)(x)
    assert first.shape == (1, 1, 55, 55)
    assert torch.equal(first[0, 0], x[0, 0, 0::4, 0::4][:55, :55])  # padding at the start would move this
    last_inside = tap(alone, 7, 7)(x)
    assert last_inside[0, 0, 54, 54] == x[0, 0, 223, 223]
    outside = tap(alone, 10, 0)(x)[0, 0]
    assert (outside[54] == 0).all()
    assert (outside[:54] != 0).all()
    outside = tap(alone, 0, 8)(x)[0, 0]
    assert (outside[:, 54] == 0).all()
    assert (outside[:, :54] != 0).all()


@pytest.mark.parametrize(("side", "outputs"), [(11, 1), (12, 2), (15, 2), (16, 3), (227, 55), (228, 56)])
def test_windows_are_rounded_up(alone: Mesh, side: int, outputs: int) -> None:
    assert tap(alone, 0, 0)(torch.ones(1, 1, side, side)).shape == (1, 1, outputs, outputs)


# ---- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_as_many_units_fall_as_the_rate_says(rate: float) -> None:
    mask = kept(1, "drop6", rate, torch.arange(200), 0, 1000).double()
    assert mask.mean().item() == pytest.approx(1 - rate, abs=0.005)
    assert mask.mean(0).min() >= 1 - rate - 0.2  # no unit, and no image, has a rate of its own
    assert mask.mean(1).max() <= 1 - rate + 0.1


def test_a_mask_is_the_hash_of_seed_layer_position_and_unit() -> None:
    positions = torch.tensor([0, 5, 2**40])
    mask = kept(3, "drop7", 0.3, positions, 17, 8)
    for row, position in enumerate(positions.tolist()):
        for j in range(8):
            assert mask[row, j].item() == ((word(3, "dropout/drop7", position, 17 + j) >> 11) / 2**53 >= 0.3)


def test_a_mask_knows_neither_batch_nor_cut() -> None:
    positions = torch.arange(40) * 7
    whole = kept(3, "drop7", 0.5, positions, 0, 64)
    assert torch.equal(kept(3, "drop7", 0.5, positions[[9, 3]], 0, 64), whole[[9, 3]])
    assert torch.equal(kept(3, "drop7", 0.5, positions, 48, 16), whole[:, 48:])
    assert torch.equal(kept(3, "drop7", 0.5, positions, 48, 1), whole[:, 48:49])


def test_masks_differ_by_seed_layer_and_position() -> None:
    positions = torch.arange(50)
    mask = kept(3, "drop7", 0.5, positions, 0, 200)
    for other in (
        kept(4, "drop7", 0.5, positions, 0, 200),
        kept(3, "drop6", 0.5, positions, 0, 200),
        kept(3, "drop7", 0.5, positions + 50, 0, 200),
        kept(3, "drop7", 0.5, positions, 200, 200),
    ):
        assert (mask == other).double().mean().item() == pytest.approx(0.5, abs=0.03)
