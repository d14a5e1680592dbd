"""What one rank gets for one forward, and its way to the device.

Shapes: b images of this replica, S the image's side in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fault:
    """A picture that did not decode: it keeps its place with weight 0."""

    position: int
    key: str
    url: str
    cause: str


@dataclass(frozen=True)
class Batch:
    """One replica's part of one micro-batch."""

    pixels_b3SS: Tensor  # uint8, as decoded
    mirror_b: Tensor  # bool
    label_b: Tensor  # int64
    weight_b: Tensor  # fp32: 1, or 0 for a fault or for padding
    position_b: Tensor  # int64: place on the endless line (evaluation: sample id, -1 for padding)
    noise_b3: Tensor  # fp32: added to R, G, B
    divisor_b: Tensor  # fp32: of the pixels, mean and noise taken into account
    keys: tuple[str, ...]  # of the images, in order; padding has none
    faults: tuple[Fault, ...]
    fetch_s: float = 0.0  # what the loader spent on reading the files, and on decoding them
    decode_s: float = 0.0

    def pin_memory(self) -> "Batch":
        """For the DataLoader: page-locked, so that the copy to a GPU does not wait."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """On the device. To a GPU the copy is made beside what it computes: the step before is not over by then."""
        if device.type != "cuda":
            return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))
        beside = beside_stream(device)
        main = torch.cuda.current_stream(device)
        with torch.cuda.stream(beside):
            here = self.mapped(lambda tensor: tensor.to(device, non_blocking=True))
        main.wait_stream(beside)
        here.mapped(partial(_used_on, main))
        return here

    def inputs(self, mean_3SS: Tensor) -> Tensor:
        """What the network sees: fp32 (b, 3, S, S). Mirrored, minus the mean, plus the noise, divided; pixels 0-255.

        mean_3SS: fp32, (3, S, S), which is not mirrored with the picture (as in 2012), or (3, 1, 1).
        """
        uint8_b3SS = torch.where(self.mirror_b[:, None, None, None], self.pixels_b3SS.flip(3), self.pixels_b3SS)
        pixels_b3SS = uint8_b3SS.float().sub_(mean_3SS)
        return pixels_b3SS.add_(self.noise_b3[:, :, None, None]).div_(self.divisor_b[:, None, None, None])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` of each of its tensors; keys and faults stay."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@cache
def beside_stream(device: torch.device) -> torch.cuda.Stream:
    """On which pictures come to a GPU. One for all: memory is kept apart by stream, so more would hold more of it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _used_on(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    """Its memory belongs to the stream that made it, which must not use it again before this one is done with it."""
    tensor.record_stream(stream)
    return tensor
