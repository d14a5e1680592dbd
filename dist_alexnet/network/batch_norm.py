"""Batch norm over fixed parts of the global batch, so that it is the same function on every layout.

A batch is a line of B images in the order of its slots (shards/order.py), cut into equal parts; each part is normalised
by its own statistics. A rank's images of one forward are a run of that line: it holds whole parts, or it is one of
several neighbouring ranks that hold one part between them.

Shapes: b images of this replica, P parts among them, C channels held here, H W pixels.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_alexnet.errors import LayoutError
from dist_alexnet.network.spec import BatchNorm
from dist_alexnet.parallel.collectives import sum_over
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import Mesh


@dataclass(frozen=True)
class Parts:
    """How the parts of a batch fall on the ranks: `here` whole ones on each rank, or one on `ranks` neighbours."""

    here: int = 1
    ranks: int = 1


def parts_on(layout: Layout, batch_size: int, parts: int, accumulation: int) -> Parts:
    """Where the statistics of `parts` equal parts of the batch are formed. Raises LayoutError where they cannot be."""
    size = batch_size // parts
    micro_batch = batch_size // (layout.data * accumulation)
    replica = micro_batch // layout.replicas
    if replica % size == 0:
        return Parts(here=replica // size)
    whole_in_micro = size % replica == 0 and micro_batch % size == 0
    whole_in_batch = size % micro_batch == 0 and accumulation == 1
    if whole_in_micro or whole_in_batch:
        return Parts(ranks=size // replica)
    raise LayoutError(
        f"network.batch_norm_groups is {parts}, so {size} images share statistics, but a forward brings {replica} "
        f"images to a rank and {micro_batch} to a model group: change parallel.micro_batch, the layout, or the groups"
    )


class BatchNormLayer(nn.Module):
    """The maps that this rank holds. Running statistics are the same on all ranks of a column."""

    mean: Tensor
    variance: Tensor
    pending: Tensor

    def __init__(self, layer: BatchNorm, weight_C: Tensor, bias_C: Tensor, mesh: Mesh, parts: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight_C), nn.Parameter(bias_C)
        self.layer, self.mesh, self.parts = layer, mesh, parts
        self.register_buffer("mean", torch.zeros_like(weight_C))
        self.register_buffer("variance", torch.ones_like(weight_C))
        # Sums of the means and variances of this rank's parts since the last step, and how many parts those were.
        self.register_buffer("pending", torch.zeros(2 * len(weight_C) + 1))

    def forward(self, x_bCHW: Tensor, weight_b: Tensor) -> Tensor:
        """weight_b: 0 for images that are left out of the statistics."""
        if not self.training:
            mean, variance = self.mean[:, None, None], self.variance[:, None, None]
            return self._scaled((x_bCHW - mean) * (variance + self.layer.eps).rsqrt())
        images, channels, height, width = x_bCHW.shape
        x = x_bCHW.reshape(self.parts, images // self.parts, channels, height, width)
        weight = weight_b.to(x.dtype).reshape(self.parts, -1, 1, 1, 1)
        group = self.mesh.sharing
        pixels = sum_over(weight.sum(1, keepdim=True) * (height * width), group)
        count = pixels.clamp_min(1)
        mean = sum_over((x * weight).sum((1, 3, 4), keepdim=True), group) / count
        centred = x - mean
        square = sum_over((centred.square() * weight).sum((1, 3, 4), keepdim=True), group)
        unbiased = square / (count - 1).clamp_min(1)
        self._remember(mean.detach().view(self.parts, -1), unbiased.detach().view(self.parts, -1), pixels > 0)
        return self._scaled((centred * (square / count + self.layer.eps).rsqrt()).view(x_bCHW.shape))

    def _remember(self, mean_PC: Tensor, variance_PC: Tensor, real: Tensor) -> None:
        """Only of parts in which a picture decoded: the others' means and variances are 0."""
        self.pending += torch.cat([mean_PC.sum(0), variance_PC.sum(0), real.sum().view(1)]).to(self.pending.dtype)

    def settle(self, dropped: bool = False) -> None:
        """After an optimizer step: the mean of all parts' statistics goes into the running ones. All ranks call it."""
        total, channels = self.pending.clone(), len(self.mean)
        self.pending.zero_()
        for group, ranks in ((self.mesh.replica, self.mesh.layout.replicas), (self.mesh.data, self.mesh.layout.data)):
            if ranks > 1:
                dist.all_reduce(total, group=group)
        if dropped:
            return
        mean, variance = (total[:-1] / total[-1].clamp_min(1)).view(2, channels)
        moved = self.layer.momentum * (total[-1] > 0).to(total.dtype)
        self.mean.lerp_(mean, moved)
        self.variance.lerp_(variance, moved)

    def _scaled(self, x_bCHW: Tensor) -> Tensor:
        return x_bCHW * self.weight[:, None, None] + self.bias[:, None, None]
