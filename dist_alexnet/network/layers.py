"""The arithmetic of the layers, on one rank's part.

Shapes: b images, C channels held here, c channels of one column, H W pixels, F features, u units held here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_alexnet.network.spec import Conv, ResponseNorm, SpatialNorm
from dist_alexnet.parallel.collectives import sum_over_replicas
from dist_alexnet.parallel.mesh import Mesh
from shards.hashing import hash_words, stream_key, unit_interval


class ConvLayer(nn.Module):
    """One column's filters, or both columns' (`groups` 2 where each column reads only its own channels)."""

    def __init__(self, layer: Conv, weight: Tensor, bias: Tensor, groups: int, mesh: Mesh) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.layer, self.groups, self.mesh = layer, groups, mesh

    def forward(self, x_bCHW: Tensor) -> Tensor:
        weight, bias = sum_over_replicas(self.weight, self.mesh), sum_over_replicas(self.bias, self.mesh)
        pad, kernel, stride = self.layer.pad, self.layer.kernel, self.layer.stride
        over = -(x_bCHW.shape[-1] + 2 * pad - kernel) % stride  # 2012 rounds up: the last filters overhang the end
        if over:
            return F.conv2d(F.pad(x_bCHW, (pad, pad + over, pad, pad + over)), weight, bias, stride, 0, 1, self.groups)
        return F.conv2d(x_bCHW, weight, bias, stride, pad, 1, self.groups)


class FullyConnectedLayer(nn.Module):
    """This rank's rows of a fully connected layer."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x_BF: Tensor) -> Tensor:
        return F.linear(x_BF, self.weight, self.bias)


def widened(x: Tensor) -> Tensor:
    """Half precision to fp32: norms, softmax and sums are never computed in half."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def response_norm(x_bCHW: Tensor, norm: ResponseNorm, columns_here: int) -> Tensor:
    """Response norm over neighbouring maps, each column by itself: the window is clipped at the column's edges.

    The window's sum is `size` shifted slices: torch's own local_response_norm goes through a 3-d average pool, whose
    backward on GPUs is not deterministic.
    """
    images, channels, height, width = x_bCHW.shape
    maps = channels // columns_here
    x = widened(x_bCHW).reshape(images * columns_here, maps, height, width)
    before = norm.size // 2
    squares = F.pad(x * x, (0, 0, 0, 0, before, norm.size - 1 - before))
    total = squares[:, :maps]
    for shift in range(1, norm.size):
        total = total + squares[:, shift : shift + maps]
    alpha = norm.alpha / norm.size if norm.convention == "mean" else norm.alpha
    return (x / (norm.k + alpha * total) ** norm.beta).reshape(images, channels, height, width)


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
