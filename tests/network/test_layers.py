"""Layers by themselves, against loops and torch, and the windows that overhang."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_alexnet.errors import LayoutError
from dist_alexnet.network.batch_norm import BatchNormLayer, Parts, parts_on
from dist_alexnet.network.layers import (
    ConvLayer,
    FullyConnectedLayer,
    LocalLayer,
    kept,
    response_norm,
    spatial_norm,
)
from dist_alexnet.network.spec import BatchNorm, Conv, Local, ResponseNorm, SpatialNorm
from dist_alexnet.parallel.collectives import widened
from dist_alexnet.parallel.layout import Layout
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


def tap(row: int, column: int) -> ConvLayer:
    """conv1 with one weight that is 1: its output shows which pixel stands under that tap."""
    weight = torch.zeros(1, 1, 11, 11)
    weight[0, 0, row, column] = 1
    layer = Conv(kind="conv", name="conv1", filters=1, kernel=11, stride=4, reads="all", init_sd=1)
    return ConvLayer(layer, weight, torch.zeros(1), 1)


def test_conv1_overhangs_at_the_right_and_the_bottom_only() -> None:
    """224 pixels give 55 windows: window i begins at pixel 4i, and the last one has 3 pixels of zeros at its end."""
    side = 224
    x = (1 + torch.arange(side * side, dtype=torch.float32)).view(1, 1, side, side)
    first = tap(0, 0)(x)
    assert first.shape == (1, 1, 55, 55)
    assert torch.equal(first[0, 0], x[0, 0, 0::4, 0::4][:55, :55])  # padding at the start would move this
    last_inside = tap(7, 7)(x)
    assert last_inside[0, 0, 54, 54] == x[0, 0, 223, 223]
    outside = tap(10, 0)(x)[0, 0]
    assert (outside[54] == 0).all()
    assert (outside[:54] != 0).all()
    outside = tap(0, 8)(x)[0, 0]
    assert (outside[:, 54] == 0).all()
    assert (outside[:, :54] != 0).all()


@pytest.mark.parametrize(("side", "outputs"), [(11, 1), (12, 2), (15, 2), (16, 3), (227, 55), (228, 56)])
def test_windows_are_rounded_up(side: int, outputs: int) -> None:
    assert tap(0, 0)(torch.ones(1, 1, side, side)).shape == (1, 1, outputs, outputs)


def test_windows_may_be_rounded_down_as_in_torch() -> None:
    layer = Conv(kind="conv", name="c", filters=1, kernel=11, stride=4, pad=2, reads="all", init_sd=1, rounding="down")
    x = noise(1, 3, 224, 224)
    weight, bias = torch.randn(4, 3, 11, 11), torch.randn(4)
    ours = ConvLayer(layer, weight, bias, 1)(x.float())
    assert ours.shape == (1, 4, 55, 55)
    assert torch.equal(ours, F.conv2d(x.float(), weight, bias, stride=4, padding=2))


# ---- local layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "pad", "stride", "side"), [(1, 1, 1, 5), (2, 0, 1, 4), (2, 1, 2, 6)])
def test_a_local_layer_is_a_sum_written_by_hand(groups: int, pad: int, stride: int, side: int) -> None:
    layer = Local(kind="local", name="l", filters=4, kernel=3, stride=stride, pad=pad, init_sd=1)
    out = 1 + math.ceil((side + 2 * pad - 3) / stride)
    weight, bias = noise(4, out, out, 6 // groups, 3, 3), noise(4, out, out)
    x = noise(2, 6, side, side)
    padded = F.pad(x, (pad, pad + 3, pad, pad + 3))
    ours = LocalLayer(layer, weight, bias, groups)(x)
    assert ours.shape == (2, 4, out, out)
    for image, unit, row, column in itertools.product(range(2), range(4), range(out), range(out)):
        first = 6 // groups * (unit * groups // 4)
        window = padded[
            image, first : first + 6 // groups, row * stride : row * stride + 3, column * stride : column * stride + 3
        ]
        expected = float((window * weight[unit, row, column]).sum() + bias[unit, row, column])
        assert float(ours[image, unit, row, column]) == pytest.approx(expected, rel=1e-12)


def test_a_local_layer_with_equal_weights_everywhere_is_a_convolution() -> None:
    conv = Conv(kind="conv", name="c", filters=4, kernel=3, pad=1, reads="all", init_sd=1)
    local = Local(kind="local", name="l", filters=4, kernel=3, pad=1, init_sd=1)
    x, weight, bias = noise(2, 3, 7, 7), noise(4, 3, 3, 3), noise(4)
    everywhere = weight[:, None, None].expand(4, 7, 7, 3, 3, 3).contiguous()
    ours = LocalLayer(local, everywhere, bias[:, None, None].expand(4, 7, 7).contiguous(), 1)(x)
    assert torch.allclose(ours, ConvLayer(conv, weight, bias, 1)(x), rtol=1e-12)


# ---- columns of a fully connected layer -----------------------------------------------------------------------------


def test_rows_that_read_their_own_column() -> None:
    x, weight, bias = noise(3, 10), noise(7, 5), noise(7)
    ours = FullyConnectedLayer(weight, bias, [(0, 3), (1, 4)], 2)(x)
    assert torch.allclose(ours[:, :3], x[:, :5] @ weight[:3].T + bias[:3], rtol=1e-12)
    assert torch.allclose(ours[:, 3:], x[:, 5:] @ weight[3:].T + bias[3:], rtol=1e-12)
    only_second = FullyConnectedLayer(weight, bias, [(1, 7)], 2)(x)
    assert torch.allclose(only_second, x[:, 5:] @ weight.T + bias, rtol=1e-12)


# ---- batch norm -----------------------------------------------------------------------------------------------------


def batch_norm(mesh: Mesh, maps: int, parts: int) -> BatchNormLayer:
    layer = BatchNorm(kind="batch_norm", name="b")
    return BatchNormLayer(layer, 1 + noise(maps) / 9, noise(maps), mesh, parts).double()


def test_each_part_is_normalised_as_torch_does_it(alone: Mesh) -> None:
    ours, x = batch_norm(alone, 4, 3), (noise(6, 4, 5, 5) * 3 + 1).requires_grad_()
    theirs = nn.BatchNorm2d(4).double()
    theirs.load_state_dict({**theirs.state_dict(), "weight": ours.weight.data, "bias": ours.bias.data})
    y = ours(x, torch.ones(6))
    expected = torch.cat([theirs(part) for part in x.chunk(3)])
    assert torch.allclose(y, expected, rtol=1e-10, atol=1e-12)
    weight = noise(*y.shape)
    (grad,) = torch.autograd.grad((y * weight).sum(), x, retain_graph=True)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(grad, expected_grad, rtol=1e-8, atol=1e-12)


def test_running_statistics_move_once_a_step_by_the_mean_of_the_parts(alone: Mesh) -> None:
    ours, x = batch_norm(alone, 4, 2), noise(8, 4, 5, 5) * 3 + 1
    for micro in x.chunk(2):
        ours(micro, torch.ones(4))
    assert torch.equal(ours.mean, torch.zeros(4).double())
    ours.settle()
    parts = [part.transpose(0, 1).flatten(1) for part in x.chunk(4)]
    mean = torch.stack([part.mean(1) for part in parts]).mean(0)
    variance = torch.stack([part.var(1) for part in parts]).mean(0)
    assert torch.allclose(ours.mean, 0.1 * mean, rtol=1e-10)
    assert torch.allclose(ours.variance, 0.9 + 0.1 * variance, rtol=1e-10)
    ours(x[:4] + torch.nan, torch.ones(4))
    before = ours.mean.clone()
    ours.settle(dropped=True)
    assert torch.equal(ours.mean, before)
    ours.eval()
    y = ours(x[:1], torch.ones(1))
    by_hand = (x[:1] - ours.mean[:, None, None]) / (ours.variance[:, None, None] + 1e-5).sqrt()
    assert torch.allclose(y, by_hand * ours.weight[:, None, None] + ours.bias[:, None, None], rtol=1e-10)


def test_an_image_that_did_not_decode_is_in_no_statistics(alone: Mesh) -> None:
    ours, x = batch_norm(alone, 4, 1), noise(4, 4, 5, 5)
    x[2] = 1e6
    real = [0, 1, 3]
    y = ours(x, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    other = BatchNormLayer(ours.layer, ours.weight.data, ours.bias.data, alone, 1).double()
    assert torch.allclose(y[real], other(x[real], torch.ones(3)), rtol=1e-9)
    ours.settle()
    other.settle()
    assert torch.allclose(ours.variance, other.variance, rtol=1e-10)
    before = ours.variance.clone()
    ours(x, torch.zeros(4))  # a part without a picture has no statistics
    ours.settle()
    assert torch.equal(ours.variance, before)


@pytest.mark.parametrize(
    ("layout", "accumulation", "groups", "expected"),
    [
        (Layout(), 1, 4, Parts(here=4)),
        (Layout(), 4, 4, Parts(here=1)),
        (Layout(data=2), 1, 1, Parts(ranks=2)),
        (Layout(data=2, replicas=2), 1, 1, Parts(ranks=4)),
        (Layout(data=2, replicas=2), 1, 2, Parts(ranks=2)),
        (Layout(replicas=4), 1, 2, Parts(ranks=2)),
        (Layout(data=2, replicas=2, columns=2), 1, 4, Parts(here=1)),
        (Layout(), 2, 1, None),
        (Layout(data=2), 2, 2, None),
        (Layout(replicas=3), 1, 2, None),
    ],
)
def test_where_statistics_are_formed(layout: Layout, accumulation: int, groups: int, expected: Parts | None) -> None:
    if expected is None:
        with pytest.raises(LayoutError, match=f"batch_norm_groups is {groups}"):
            parts_on(layout, 48, groups, accumulation)
    else:
        assert parts_on(layout, 48, groups, accumulation) == expected


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


@pytest.mark.parametrize("columns_here", [1, 2])
def test_response_norm_keeps_the_memory_format(columns_here: int) -> None:
    """Or parallel.channels_last would end behind the first norm."""
    x = torch.randn(3, 8, 5, 5)
    norm = ResponseNorm(kind="lrn", convention="mean")
    last = response_norm(x.contiguous(memory_format=torch.channels_last), norm, columns_here)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, response_norm(x, norm, columns_here))
