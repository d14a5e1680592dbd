"""AlexNet once more, in plain torch and nothing of ours: both columns in one process, grouped convolutions.

Written from the fact sheet of the original: net 145's layer files, and the paper's text.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]  # "conv1.weight" -> whole tensor
MASK64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(x: int) -> int:
    """The finaliser of splitmix64, on one Python integer."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def word(seed: int, stream: str, position: int, unit: int) -> int:
    """h(seed, stream, position, unit) as an unsigned 64-bit integer."""
    name = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    key = splitmix(splitmix((name + GOLDEN) & MASK64) ^ splitmix((seed + GOLDEN) & MASK64))
    return splitmix((splitmix((position * GOLDEN + key) & MASK64) + unit * GOLDEN) & MASK64)


def mask(seed: int, layer: str, rate: float, positions: list[int], units: int) -> Tensor:
    """Dropout mask (images, units) in fp64: kept where the upper 53 bits of the hash, as a fraction, reach the rate."""
    rows = [
        [float((word(seed, f"dropout/{layer}", position, unit) >> 11) / 2**53 >= rate) for unit in range(units)]
        for position in positions
    ]
    return torch.from_numpy(np.array(rows))


def forward_2012(p: Parameters, x: Tensor, drop6: Tensor | float, drop7: Tensor | float) -> Tensor:
    """Net 145 as it was run: logits (images, classes)."""
    x = _conv(p, "conv1", _overhung(x, 11, 4), stride=4)
    x = F.relu(_pool(_lrn(x, 1e-4)))
    x = F.relu(_conv(p, "conv2", x, padding=2, groups=2))
    x = _pool(_spatial(_lrn(x, 1e-4)))
    x = F.relu(_conv(p, "conv3", x, padding=1))
    x = F.relu(_conv(p, "conv4", x, padding=1, groups=2))
    x = F.relu(_pool(_conv(p, "conv5", x, padding=1, groups=2)))
    return _head(p, x, drop6, drop7)


def forward_paper(p: Parameters, x: Tensor, drop6: Tensor | float, drop7: Tensor | float) -> Tensor:
    """The paper's text: ReLU before both norms, alpha on the plain sum (torch divides it by the window, 5)."""
    x = _pool(_lrn(F.relu(_conv(p, "conv1", _overhung(x, 11, 4), stride=4)), 5e-4))
    x = _pool(_lrn(F.relu(_conv(p, "conv2", x, padding=2, groups=2)), 5e-4))
    x = F.relu(_conv(p, "conv3", x, padding=1))
    x = F.relu(_conv(p, "conv4", x, padding=1, groups=2))
    x = _pool(F.relu(_conv(p, "conv5", x, padding=1, groups=2)))
    return _head(p, x, drop6, drop7)


FORWARD = {"alexnet-2012": forward_2012, "alexnet-2012-paper": forward_paper}


def _head(p: Parameters, x: Tensor, drop6: Tensor | float, drop7: Tensor | float) -> Tensor:
    x = F.relu(F.linear(x.flatten(1), p["fc6.weight"], p["fc6.bias"])) * drop6
    x = F.relu(F.linear(x, p["fc7.weight"], p["fc7.bias"])) * drop7
    return F.linear(x, p["fc8.weight"], p["fc8.bias"])


def _conv(p: Parameters, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding, 1, groups)


def _overhung(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros at the right and the bottom, so that the count of windows is rounded up."""
    outputs = 1 + math.ceil((x.shape[-1] - kernel) / stride)
    missing = (outputs - 1) * stride + kernel - x.shape[-1]
    return F.pad(x, (0, missing, 0, missing))


def _lrn(x: Tensor, alpha: float) -> Tensor:
    """Torch's response norm on each column by itself."""
    return torch.cat([F.local_response_norm(column, 5, alpha, 0.75, 2.0) for column in x.chunk(2, dim=1)], dim=1)


def _spatial(x: Tensor) -> Tensor:
    """Net 145's third norm: 5 x 5 pixels of the same map, scale 1e-3 / 25, constant 1."""
    ones = torch.ones(x.shape[1], 1, 5, 5, dtype=x.dtype)
    sums = F.conv2d(x.square(), ones, padding=2, groups=x.shape[1])
    return x / (1 + 1e-3 / 25 * sums) ** 0.75


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, ceil_mode=True)
