"""What crosses the wire in the network, forward and backward in pairs. A group of one rank sends nothing.

Shapes: B images of the model group in one micro-batch, b = B / replicas, C channels, H W pixels, F features, U units of
a whole layer, u units of this rank, G ranks in the model group.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from dist_alexnet.parallel.layout import LogicalTensor, Place, owned_rows
from dist_alexnet.parallel.mesh import Mesh


class _Stack(torch.autograd.Function):
    """Forward: all-gather to a new dim 0. Backward: reduce-scatter of the sum, in fp32 at least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        wide = grad.float() if grad.dtype in (torch.bfloat16, torch.float16) else grad
        own = torch.empty_like(wide[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter(own, [part.contiguous() for part in wide], group=ctx.group)
        return own.to(grad.dtype), None


def _stack(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What every rank of the group gives, along a new dim 0."""
    return cast(Tensor, _Stack.apply(x, group))  # type: ignore[no-untyped-call]


class _SumGradient(torch.autograd.Function):
    """Forward: nothing. Backward: all-reduce of the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def gather_columns(x_bCHW: Tensor, mesh: Mesh) -> Tensor:
    """Channels of all columns, column 0 first; backward sums what every column sends back."""
    if mesh.layout.columns == 1:
        return x_bCHW
    stacked = _stack(x_bCHW, mesh.column)
    return stacked.transpose(0, 1).flatten(1, 2)


def gather_features(x_bF: Tensor, mesh: Mesh) -> Tensor:
    """Features of all columns of all images of the model group: (b, F own) -> (B, F all columns)."""
    layout = mesh.layout
    if layout.group_ranks == 1:
        return x_bF
    stacked_GbF = _stack(x_bF, mesh.model)
    images, features = x_bF.shape
    by_place = stacked_GbF.view(layout.replicas, layout.columns, images, features)
    return by_place.permute(0, 2, 1, 3).reshape(layout.replicas * images, layout.columns * features)


def gather_units(x_Bu: Tensor, tensor: LogicalTensor, mesh: Mesh) -> Tensor:
    """All units of a fully connected layer whose rows are cut over the model group: (B, u) -> (B, U)."""
    layout = mesh.layout
    if layout.group_ranks == 1:
        return x_Bu
    first = layout.group_ranks * mesh.place.data_rank
    rows = [owned_rows(tensor, Place(layout, first + rank)) for rank in range(layout.group_ranks)]
    most = max(len(own) for own in rows)
    stacked = _stack(F.pad(x_Bu, (0, most - x_Bu.shape[1])), mesh.model)
    in_order = sorted(range(layout.group_ranks), key=lambda rank: rows[rank].start)
    return torch.cat([stacked[rank, :, : len(rows[rank])] for rank in in_order], dim=1)


def sum_over_replicas(weight: Tensor, mesh: Mesh) -> Tensor:
    """A convolution's weight or bias, whose gradient is summed over the replicas that share the images."""
    if mesh.layout.replicas == 1:
        return weight
    return cast(Tensor, _SumGradient.apply(weight, mesh.replica))  # type: ignore[no-untyped-call]


def gather_images(values_b: Tensor, mesh: Mesh) -> Tensor:
    """Facts about the images (no gradient) of all replicas: (b, ...) -> (B, ...)."""
    if mesh.layout.replicas == 1:
        return values_b
    parts = [torch.empty_like(values_b) for _ in range(mesh.layout.replicas)]
    dist.all_gather(parts, values_b.contiguous(), group=mesh.replica)
    return torch.cat(parts)


class _Softmax(torch.autograd.Function):
    """Cross entropy of logits whose classes are cut over the model group. Two small all-reduces, never the logits."""

    @staticmethod
    def forward(ctx: Any, logits_Bu: Tensor, label_B: Tensor, first: int, mesh: Mesh) -> tuple[Tensor, Tensor]:
        classes = logits_Bu.shape[1]
        own_B = (label_B >= first) & (label_B < first + classes)
        slot_B1 = (label_B - first).clamp(0, classes - 1)[:, None]
        true_B = logits_Bu.gather(1, slot_B1)[:, 0].masked_fill(~own_B, -torch.inf)
        largest = torch.stack([logits_Bu.amax(1), true_B])
        _reduce(largest, dist.ReduceOp.MAX, mesh)
        max_B1, true_B1 = largest[0][:, None], largest[1][:, None]

        exp_Bu = (logits_Bu - max_B1).exp()
        # A class stands before the true one if it is not below it; ties fall to the lower class, NaN counts as before.
        class_u = torch.arange(first, first + classes, device=logits_Bu.device)
        behind_Bu = (logits_Bu < true_B1) | ((logits_Bu == true_B1) & (class_u[None] >= label_B[:, None]))
        sums = torch.stack([exp_Bu.sum(1), (~behind_Bu).sum(1).to(logits_Bu.dtype)])
        _reduce(sums, dist.ReduceOp.SUM, mesh)

        ctx.save_for_backward(exp_Bu / sums[0][:, None], slot_B1, own_B)
        ahead_B = sums[1]
        ctx.mark_non_differentiable(ahead_B)
        return sums[0].log() + largest[0] - largest[1], ahead_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        probability_Bu, slot_B1, own_B = ctx.saved_tensors
        grad_Bu = probability_Bu.scatter_add(1, slot_B1, -own_B[:, None].to(probability_Bu.dtype))
        return grad_Bu * grads[0][:, None], None, None, None


def _reduce(values: Tensor, op: Any, mesh: Mesh) -> None:
    if mesh.layout.group_ranks > 1:
        dist.all_reduce(values, op=op, group=mesh.model)


def cross_entropy(logits_Bu: Tensor, label_B: Tensor, first_class: int, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """(loss_B, ahead_B): -log softmax of the true class, and how many classes stand before it (top-k: ahead < k).

    logits_Bu: this rank's classes [first_class, first_class + u), fp32 or fp64. The same result on each rank of the
    model group; each rank's backward gives the gradient of its own classes.
    """
    outputs = _Softmax.apply(logits_Bu, label_B, first_class, mesh)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], outputs)
