"""Sums of what the network says of its batches, kept on the device until somebody asks."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def batch_sums(loss_B: Tensor, ahead_B: Tensor, weight_B: Tensor) -> Tensor:
    """[loss, top-1, top-5, images]: weighted sums over the images of a model group, fp64 (4,)."""
    rows = [loss_B, (ahead_B < 1).to(loss_B.dtype), (ahead_B < 5).to(loss_B.dtype), torch.ones_like(loss_B)]
    return (torch.stack(rows) * weight_B).sum(1).double()


@dataclass
class Agreed:
    """Sums that all ranks know, since the last line of metrics; they travel in the checkpoint."""

    loss: float = 0.0
    top1: float = 0.0
    top5: float = 0.0
    images: float = 0.0  # decoded ones
    steps: int = 0
    bad_samples: int = 0  # since the start of the run


class Meter:
    """The training sums of a run. `data_group`: the ranks that hold other model groups' sums."""

    def __init__(self, device: torch.device, data_group: dist.ProcessGroup, batch_size: int) -> None:
        self.agreed = Agreed()
        self._group, self._batch_size = data_group, batch_size
        # The four sums of the steps that count, and the images of those that were left out.
        self._pending = torch.zeros(5, dtype=torch.float64, device=device)
        self._pending_steps = self._left_out_steps = 0

    def add(self, sums: Tensor, counts: bool = True) -> None:
        """One step's `batch_sums`. Of a step that was left out only its bad pictures count."""
        if counts:
            self._pending[:4] += sums
            self._pending_steps += 1
        else:
            self._pending[4] += sums[3]
            self._left_out_steps += 1

    def agree(self) -> int:
        """Add what is pending, over all ranks; returns how many of its pictures were bad."""
        if dist.get_world_size(self._group) > 1:
            dist.all_reduce(self._pending, group=self._group)
        loss, top1, top5, images, left_out = self._pending.tolist()
        bad: int = (self._pending_steps + self._left_out_steps) * self._batch_size - round(images + left_out)
        agreed = self.agreed
        agreed.loss, agreed.top1, agreed.top5 = agreed.loss + loss, agreed.top1 + top1, agreed.top5 + top5
        agreed.images, agreed.steps = agreed.images + images, agreed.steps + self._pending_steps
        agreed.bad_samples += bad
        self._forget()
        return bad

    def values(self) -> dict[str, float]:
        """Means over the steps since the last line: the loss as it is minimised, sum(weight * loss) / B."""
        images = max(1.0, self.agreed.images)
        return {
            "train/loss": self.agreed.loss / (max(1, self.agreed.steps) * self._batch_size),
            "train/top1": self.agreed.top1 / images,
            "train/top5": self.agreed.top5 / images,
        }

    def reset(self) -> None:
        """A new line of metrics begins."""
        self.agreed = Agreed(bad_samples=self.agreed.bad_samples)

    def state(self) -> dict[str, Any]:
        """For the checkpoint, after `agree`."""
        return vars(self.agreed).copy()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave ({}: the start of a run); what was not agreed on is forgotten."""
        self.agreed = Agreed(**state)
        self._forget()

    def _forget(self) -> None:
        self._pending.zero_()
        self._pending_steps = self._left_out_steps = 0
