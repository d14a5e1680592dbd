"""The arithmetic of the layers, on one rank's part.

Shapes: b images, C channels held here, c channels of one column, H W pixels, F features, u units held here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_alexnet.network.spec import Conv, Local, ResponseNorm, SpatialNorm
from dist_alexnet.parallel.collectives import ColumnsUnderWay, widened
from shards.hashing import hash_words, stream_key, unit_interval


class ConvLayer(nn.Module):
    """One column's filters, or both columns'. `groups`: parts of the channels that do not see each other."""

    def __init__(self, layer: Conv, weight: Tensor, bias: Tensor | None, groups: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), _parameter(bias)
        self.layer, self.groups = layer, groups

    def forward(self, x_bCHW: Tensor, other: ColumnsUnderWay | None = None, column: int = 0) -> Tensor:
        """other: x holds only this rank's column, and the other column's channels are on their way."""
        if other is None:
            return self._convolved(x_bCHW, self.weight, self.bias)
        halves = self.weight.chunk(2, dim=1)
        y = self._convolved(x_bCHW, halves[column], self.bias)
        return y + self._convolved(other.arrived(), halves[1 - column], None)

    def _convolved(self, x_bCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pad, stride = self.layer.pad, self.layer.stride
        over = overhang(x_bCHW.shape[-1], self.layer)
        if over:
            x_bCHW, pad = F.pad(x_bCHW, (pad, pad + over, pad, pad + over)), 0
        return F.conv2d(x_bCHW, weight, bias, stride, pad, 1, self.groups)


class LocalLayer(nn.Module):
    """A convolution with weights and biases of its own at each place. weight: (filters, H, W, channels, k, k)."""

    def __init__(self, layer: Local, weight: Tensor, bias: Tensor | None, groups: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), _parameter(bias)
        self.layer, self.groups = layer, groups

    def forward(self, x_bCHW: Tensor) -> Tensor:
        filters, height, width = self.weight.shape[:3]
        pad, over = self.layer.pad, overhang(x_bCHW.shape[-1], self.layer)
        x = F.pad(x_bCHW, (pad, pad + over, pad, pad + over))
        windows = F.unfold(x, self.layer.kernel, stride=self.layer.stride)  # (b, channels * k * k, places)
        x_bgil = windows.view(len(x), self.groups, -1, height * width)
        weight_gfli = self.weight.view(self.groups, filters // self.groups, height * width, -1)
        y = torch.einsum("bgil,gfli->bgfl", x_bgil, weight_gfli).reshape(len(x), filters, height, width)
        return y if self.bias is None else y + self.bias


def overhang(side: int, layer: Conv | Local) -> int:
    """Zeros beyond the right and lower end: 2012 rounds the count of outputs up, so the last filters overhang."""
    if isinstance(layer, Conv) and layer.rounding == "down":
        return 0
    return -(side + 2 * layer.pad - layer.kernel) % layer.stride


class FullyConnectedLayer(nn.Module):
    """This rank's rows of a fully connected layer.

    columns: None where every row reads all of x; else the column of each run of rows, as (column, rows), where x holds
    the features of `of` columns side by side and a row reads its own column's.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, columns: list[tuple[int, int]] | None = None, of: int = 1
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), _parameter(bias)
        self.columns, self.of = columns, of

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.columns is None:
            return F.linear(x_BF, self.weight, self.bias)
        x_by_column = x_BF.chunk(self.of, dim=1)
        rows = [count for _, count in self.columns]
        biases = [None] * len(rows) if self.bias is None else torch.split(self.bias, rows)
        parts = zip(self.columns, torch.split(self.weight, rows), biases, strict=True)
        return torch.cat([F.linear(x_by_column[column], weight, bias) for (column, _), weight, bias in parts], dim=1)


def _parameter(values: Tensor | None) -> nn.Parameter | None:
    return None if values is None else nn.Parameter(values)


def response_norm(x_bCHW: Tensor, norm: ResponseNorm, columns_here: int) -> Tensor:
    """Response norm over neighbouring maps, each column by itself: the window is clipped at the column's edges.

    The window's sum is `size` shifted slices: torch's own local_response_norm goes through a 3-d average pool, whose
    backward on GPUs is not deterministic.
    """
    images, channels, height, width = x_bCHW.shape
    maps = channels // columns_here
    # A column is a dimension of its own: in any memory format that is a view, and so is the way back.
    x = widened(x_bCHW).view(images, columns_here, maps, height, width)
    before = norm.size // 2
    squares = F.pad(x * x, (0, 0, 0, 0, before, norm.size - 1 - before))
    total = squares[:, :, :maps]
    for shift in range(1, norm.size):
        total = total + squares[:, :, shift : shift + maps]
    alpha = norm.alpha / norm.size if norm.convention == "mean" else norm.alpha
    return (x / (norm.k + alpha * total) ** norm.beta).flatten(1, 2)


def spatial_norm(x_bCHW: Tensor, norm: SpatialNorm) -> Tensor:
    """Response norm over a window of the same map; pixels outside the map count as zero."""
    x = widened(x_bCHW)
    mean_square = F.avg_pool2d(x * x, norm.size, stride=1, padding=norm.size // 2)
    return x / (norm.k + norm.alpha * mean_square) ** norm.beta


def kept(seed: int, name: str, rate: float, position_B: Tensor, first_unit: int, units: int) -> Tensor:
    """Dropout mask, bool (B, units): unit `first_unit + j` of the whole layer at an image's position on the line.

    A function of (seed, layer, position, logical unit): the same on every layout and in every micro-batch.
    """
    unit = torch.arange(first_unit, first_unit + units, device=position_B.device)
    words = hash_words(stream_key(seed, f"dropout/{name}"), position_B[:, None], unit[None, :])
    return unit_interval(words) >= int(rate * 2**53)
