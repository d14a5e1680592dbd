"""What one rank gets for one forward, and its way to the device.

Shapes: b images of this replica, S the image's side in pixels.
"""

from dataclasses import dataclass, replace

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
    keys: tuple[str, ...]  # of the images, in order; padding has none
    faults: tuple[Fault, ...]

    def pin_memory(self) -> "Batch":
        """For the DataLoader: page-locked, so that the copy to a GPU does not wait."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def inputs(self, mean_3: Tensor) -> Tensor:
        """What the network sees: fp32 (b, 3, S, S), mirrored, minus the mean of each colour (pixels 0-255)."""
        pixels = self.pixels_b3SS.float() - mean_3[:, None, None]
        return torch.where(self.mirror_b[:, None, None, None], pixels.flip(3), pixels)

    def _mapped(self, change) -> "Batch":  # type: ignore[no-untyped-def]  # noqa: ANN001
        return replace(
            self,
            pixels_b3SS=change(self.pixels_b3SS),
            mirror_b=change(self.mirror_b),
            label_b=change(self.label_b),
            weight_b=change(self.weight_b),
            position_b=change(self.position_b),
        )
