"""States with signals of one size in every layer, and what a network makes of them."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.sizes import Network
from dist_alexnet.network.spec import Spec, load_spec
from dist_alexnet.network.weights.state import State, Weights, shapes_of
from dist_alexnet.parallel.mesh import Mesh

CLASSES = 7


def drawn_state(network: Network, seed: int = 3) -> State:
    """Weights that keep the size of signals, biases and running statistics that no default equals."""
    random = torch.Generator().manual_seed(seed)
    fan_in = {step.weight.tensor.name: step.fan_in for step in network.steps if step.weight and step.fan_in}
    state = {}
    for name, shape in shapes_of(network).items():
        values = torch.randn(shape, generator=random)
        if name in fan_in:
            state[name] = values * math.sqrt(2 / fan_in[name])
        elif name.endswith((".variance", ".weight")):
            state[name] = 1 + values.abs()
        else:
            state[name] = values / 4
    return state


def drawn(name: str | Spec, width: float = 0.125, side: int | None = None, **more: Any) -> Weights:
    """Weights of a preset, or of a spec, at a small size."""
    spec = load_spec(name) if isinstance(name, str) else name
    side = side or (32 if spec.image_size < 64 else 83)
    pixels = {"image_size": side, "resize": side + 5, "mean": [120.5, 119.0, 101.25]}
    weights = Weights(name if isinstance(name, str) else "a test's", spec, CLASSES, {}, pixels, width, **more)
    return Weights(**{**vars(weights), "tensors": drawn_state(weights.network)})


def pictures(images: int, side: int) -> Tensor:
    """fp32 (images, 3, side, side), smooth, of the range of pixels minus mean; the three colours differ."""
    random = torch.Generator().manual_seed(5)
    coarse = torch.rand(images, 3, 9, 9, generator=random) * 255 - 120
    return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)


def logits_of(weights: Weights, mesh: Mesh, x: Tensor) -> Tensor:
    """What the trainer's module gives at test, in the state's precision."""
    network = weights.network
    module = ColumnNetwork(network, mesh, 0).eval().to(x.dtype)
    with torch.no_grad():
        for tensor in (*network.tensors, *network.statistics):
            module.values_of(tensor).copy_(weights.tensors[tensor.name])
        logits, _ = module.logits(x, torch.arange(len(x)), torch.arange(len(x)))
    return logits


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, in parts of how far logits differ between images."""
    return float((ours - theirs).abs().max() / theirs.std(0).max())
