"""Weights of a whole network, between a checkpoint and a file of any format.

A state is the network's logical tensors by name, whole: "conv1.weight", ..., and running statistics ("bn1.mean"). Both
columns are in it, one after the other, which is the layout of a grouped convolution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import Spec, Weighted

State = dict[str, Tensor]
# float64 is not among them: it would be rounded, and what is imported is to be what was in the file.
EXACT_IN_FP32 = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Weights:
    """A state, and what one must know to use it."""

    name: str  # of the network, as in network.name
    spec: Spec
    num_classes: int
    tensors: State
    pixels: dict[str, Any]  # settings of `data` that make pixels an input: image_size, resize, mean (, statistics)
    width: float = 1.0
    dropout: float | None = None

    @property
    def network(self) -> Network:
        """The spec at its size."""
        return network_for(
            self.spec,
            num_classes=self.num_classes,
            width=self.width,
            image_size=self.pixels["image_size"],
            dropout=self.dropout,
        )


def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    """Every tensor of a state and its shape: parameters in the network's order, then running statistics."""
    return {tensor.name: tensor.shape for tensor in (*network.tensors, *network.statistics)}


def fitted(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], origin: str, name: str) -> State:
    """The tensors as contiguous fp32, in the order of `shapes`, which has exactly those that a file must hold.

    origin, name: of the file and of the network, for the message. Raises WeightsError with all tensors that are missing
    or too many, or else with the first one of another shape or type, or with a value that is not finite.
    """
    missing = [key for key in shapes if key not in tensors]
    surplus = [key for key in tensors if key not in shapes]
    if missing or surplus:
        found = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"also holds {', '.join(surplus)}"] * bool(surplus)
        raise WeightsError(
            f"{origin} {' and '.join(found)}, expected exactly the tensors of network {name}: name the network it is of"
        )
    state = {}
    for key, shape in shapes.items():
        value = tensors[key]
        if tuple(value.shape) != shape:
            raise WeightsError(
                f"{origin} holds {key} of shape {shown(value.shape)}, network {name} expects {shown(shape)}: name the "
                "network it is of"
            )
        if value.dtype not in EXACT_IN_FP32:
            raise WeightsError(
                f"{origin} holds {key} as {dtype_name(value)}, expected float32 (or float16 or bfloat16, which are "
                "widened exactly): convert it first"
            )
        if not bool(value.isfinite().all()):
            raise WeightsError(f"{origin} holds values of {key} that are not finite: take another file")
        state[key] = value.detach().to(torch.float32).contiguous()
    return state


def last_weight(spec: Spec) -> str:
    """Name of the last layer's weights: a row a class."""
    last = spec.layers[-1]
    assert isinstance(last, Weighted)
    return f"{last.name}.weight"


def classes_in(tensors: Mapping[str, Tensor], key: str, origin: str) -> int:
    """Classes of a state: rows of the last layer's weights, which are at `key`. Raises WeightsError where none are."""
    if key not in tensors or tensors[key].dim() != 2:
        held = shown(tensors[key].shape) if key in tensors else "none"
        raise WeightsError(
            f"{origin} holds {held} for {key}, expected a matrix with a row a class: name the network it is of"
        )
    return len(tensors[key])


def usual_pixels(spec: Spec, mean: tuple[float, float, float] | None = None) -> dict[str, Any]:
    """Settings of `data` for weights whose file has none: centre crops of 256 for nets of ImageNet's size, of 32 for
    those of CIFAR's, otherwise the whole square. mean: R, G, B on 0-255; None: the config's default.
    """
    side = spec.image_size
    resize = 32 if side <= 32 else 256 if 128 < side <= 256 else side
    pixels: dict[str, Any] = {"image_size": side, "resize": resize}
    return pixels if mean is None else {**pixels, "mean": list(mean)}


def shown(shape: tuple[int, ...]) -> str:
    """A shape as 256 x 48 x 5 x 5."""
    return " x ".join(str(size) for size in shape) or "one number"


def dtype_name(value: Tensor) -> str:
    """Such as float64."""
    return str(value.dtype).removeprefix("torch.")
