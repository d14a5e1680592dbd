"""What crosses the wire in the network, forward and backward in pairs. A group of one rank sends nothing.

Shapes: B images of the model group in one micro-batch, b = B / replicas, C channels, H W pixels, F features, U units of
a whole layer, u units of this rank, G ranks in the model group.
"""

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from dist_alexnet.parallel.layout import LogicalTensor, Place, owned_rows
from dist_alexnet.parallel.mesh import Mesh

Reads = Literal["own", "all"]  # a layer reads its own column, or all of them
LEAST_PROBABILITY = 2.0**-149  # the smallest positive fp32: what logarithms take for 0


class _Stack(torch.autograd.Function):
    """Forward: all-gather to a new dim 0. Backward: each rank gets the sum of the gradients of its part, fp32 at least.

    sent: the dtype on the wire, None for that of the values. In backward each rank's part crosses the wire as it is and
    the sum is taken where it arrives, in order of rank: half precision rounds once what is sent and never a partial
    sum, no backend has an order of its own, and as much is sent as in a reduce-scatter (gloo's sends as much as an
    all-reduce).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, sent: torch.dtype | None) -> Tensor:
        ctx.group, ctx.sent = group, sent
        packed = x.to(sent or x.dtype).contiguous()
        parts = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, packed, group=group)
        return torch.stack(parts).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_G,) = grads
        parts = grad_G.reshape(grad_G.shape[0], -1)
        leaving = parts.contiguous() if ctx.sent is None else _packed(parts, ctx.sent)
        arrived = torch.empty_like(leaving)
        dist.all_to_all_single(arrived, leaving, group=ctx.group)
        wide = widened(arrived) if ctx.sent is None else _unpacked(arrived)
        return wide.sum(0).view(grad_G.shape[1:]).to(grad_G.dtype), None, None


def widened(x: Tensor) -> Tensor:
    """Half precision to fp32: norms, softmax and sums are never computed in half."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _packed(parts_Gn: Tensor, sent: torch.dtype) -> Tensor:
    """Gradients as they travel in half precision, (G, n + 1).

    fp16 reaches down to 6e-8 only, so each part is multiplied by the power of two that brings its largest element near
    2**10; the exponent travels as one more element.
    """
    wide = parts_Gn.float()
    exponent = (10 - wide.abs().amax(1, keepdim=True).clamp_min(2.0**-80).log2().ceil()).clamp(-100, 100)
    exponent = torch.where(exponent.isfinite(), exponent, 0)  # what is not finite stays so
    return torch.cat([wide * exponent.exp2(), exponent], dim=1).to(sent)


def _unpacked(packed: Tensor) -> Tensor:
    wide = packed.float()
    return wide[:, :-1] * (-wide[:, -1:]).exp2()


def _stack(x: Tensor, group: dist.ProcessGroup, sent: torch.dtype | None = None) -> Tensor:
    """What every rank of the group gives, along a new dim 0."""
    return cast(Tensor, _Stack.apply(x, group, sent))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """Forward: all-reduce of the sum. Backward: the same, because every rank used the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_over(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of what every rank of the group has (None: this rank alone); backward sums the gradients likewise."""
    return x if group is None else cast(Tensor, _Sum.apply(x, group))  # type: ignore[no-untyped-call]


def rounded(x: Tensor, sent: torch.dtype | None) -> Tensor:
    """What the wire would make of x, on every layout, also where nothing crosses; the gradient passes as it is."""
    return x if sent is None else x + (x.to(sent).to(x.dtype) - x).detach()


def gather_columns(x_bCHW: Tensor, mesh: Mesh, sent: torch.dtype | None = None) -> Tensor:
    """Channels of all columns, column 0 first; backward sums what every column sends back."""
    x_bCHW = rounded(x_bCHW, sent)
    if mesh.layout.columns == 1:
        return x_bCHW
    stacked = _stack(x_bCHW, mesh.column, sent)
    return stacked.transpose(0, 1).flatten(1, 2)


class ColumnsUnderWay:
    """The other column's channels while they travel: what can be computed without them is computed meanwhile.

        own, under_way = start_columns(x, mesh, sent)      the channels set off
        y = product of own                                  forward: beside the transfer
        y = y + product of under_way.arrived()              waits

    Backward runs the other way round: the product of the other column first, then its gradient sets off home, the
    product of the own column beside it, and at last the gradient that came is added.
    """

    def __init__(self, mesh: Mesh, sent: torch.dtype | None) -> None:
        self.mesh, self.sent = mesh, sent
        self.peer = mesh.place.rank ^ 1  # columns are neighbours, and there are two
        self.token: Tensor | None = None  # ties arrival to departure in autograd's graph

    def arrived(self) -> Tensor:
        """The other column's channels, (b, C, H, W)."""
        token, self.token = self.token, None  # its graph holds this object: a cycle, which Python frees much later
        return cast(Tensor, _Arrive.apply(token, self))  # type: ignore[no-untyped-call]

    def exchange(self, values: Tensor) -> None:
        """Send `values` to the other column, and be ready for as many of its."""
        self.leaving = values.contiguous()
        self.coming = torch.empty_like(self.leaving)
        ends = ((dist.isend, self.leaving), (dist.irecv, self.coming))
        self.works = dist.batch_isend_irecv(
            [dist.P2POp(end, tensor, self.peer, self.mesh.column) for end, tensor in ends]
        )

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        coming = self.coming
        del self.works, self.leaving, self.coming  # activations: not to be held until backward, or beyond it
        return coming


class _Depart(torch.autograd.Function):
    """Forward: own channels set off. Backward: waits for the gradient that the other column has for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, under_way: ColumnsUnderWay) -> tuple[Tensor, Tensor]:
        ctx.under_way, ctx.shape = under_way, x.shape
        under_way.exchange(x.to(under_way.sent or x.dtype))
        return x.view_as(x), x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        received = ctx.under_way.wait()
        if ctx.under_way.sent is not None:
            received = _unpacked(received)
        return grads[0] + received.view(ctx.shape).to(grads[0].dtype), None


class _Arrive(torch.autograd.Function):
    """Forward: waits for the other column's channels. Backward: the gradient for them sets off."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, under_way: ColumnsUnderWay) -> Tensor:
        ctx.under_way = under_way
        ctx.save_for_backward(token)
        return under_way.wait().to(token.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        sent, (token,) = ctx.under_way.sent, ctx.saved_tensors
        ctx.under_way.exchange(grads[0] if sent is None else _packed(grads[0].reshape(1, -1), sent))
        return token, None


def start_columns(x_bCHW: Tensor, mesh: Mesh, sent: torch.dtype | None = None) -> tuple[Tensor, ColumnsUnderWay]:
    """(own channels, the other column's under way). Needs two columns on two ranks."""
    under_way = ColumnsUnderWay(mesh, sent)
    own, under_way.token = _Depart.apply(rounded(x_bCHW, sent), under_way)  # type: ignore[no-untyped-call]
    return own, under_way


def gather_features(x_bF: Tensor, mesh: Mesh, reads: Reads = "all", sent: torch.dtype | None = None) -> Tensor:
    """Features of all images of the model group: (b, F here) -> (B, F all columns), or (B, F here) for `own`."""
    layout, x_bF = mesh.layout, rounded(x_bF, sent)
    if layout.group_ranks == 1:
        return x_bF
    images, features = x_bF.shape
    if reads == "own":
        return x_bF if layout.replicas == 1 else _stack(x_bF, mesh.replica, sent).flatten(0, 1)
    stacked_GbF = _stack(x_bF, mesh.model, sent)
    by_place = stacked_GbF.view(layout.replicas, layout.columns, images, features)
    return by_place.permute(0, 2, 1, 3).reshape(layout.replicas * images, layout.columns * features)


def gather_units(
    x_Bu: Tensor, tensor: LogicalTensor, mesh: Mesh, reads: Reads = "all", sent: torch.dtype | None = None
) -> Tensor:
    """Units of a fully connected layer whose rows are cut over the model group: (B, u) -> (B, U).

    For `own` only the units of this rank's column (all of them where both columns lie on each rank).
    """
    layout, x_Bu = mesh.layout, rounded(x_Bu, sent)
    group, ranks, step = mesh.model, layout.group_ranks, 1
    first = layout.group_ranks * mesh.place.data_rank
    if reads == "own":
        group, ranks, step = mesh.replica, layout.replicas, layout.columns
        first += mesh.place.column
    if ranks == 1:
        return x_Bu
    rows = [owned_rows(tensor, Place(layout, first + step * rank)) for rank in range(ranks)]
    most = max(len(own) for own in rows)
    stacked = _stack(F.pad(x_Bu, (0, most - x_Bu.shape[1])), group, sent)
    in_order = sorted(range(ranks), key=lambda rank: rows[rank].start)
    return torch.cat([stacked[rank, :, : len(rows[rank])] for rank in in_order], dim=1)


def gather_images(values_b: Tensor, mesh: Mesh) -> Tensor:
    """Facts about the images (no gradient) of all replicas: (b, ...) -> (B, ...)."""
    return _gathered(values_b, mesh.replica, mesh.layout.replicas)


def gather_over_columns(values: Tensor, mesh: Mesh) -> Tensor:
    """What the columns of one replica have loaded between them, along dim 0 (no gradient, any dtype)."""
    if values.dtype == torch.bool:  # not every backend sends it
        return gather_over_columns(values.view(torch.uint8), mesh).view(torch.bool)
    return _gathered(values, mesh.column, mesh.layout.columns)


def _gathered(values: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
    if ranks == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(parts, values.contiguous(), group=group)
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


@torch.no_grad()
def averaged_logits(logits_Ru: Tensor, views: int, mesh: Mesh) -> Tensor:
    """The logarithm of probabilities averaged over the `views` rows of an image, which are next to each other: (B, u).

    logits_Ru: this rank's classes, R = B * views. As logits they give these probabilities again. fp64, of probabilities
    that were rounded to fp32: so the order in which ranks add up decides no tie.
    """
    logits_Ru = logits_Ru.double()
    max_R = logits_Ru.amax(1)
    _reduce(max_R, dist.ReduceOp.MAX, mesh)
    exp_Ru = (logits_Ru - max_R[:, None]).exp()
    sum_R = exp_Ru.sum(1)
    _reduce(sum_R, dist.ReduceOp.SUM, mesh)
    mean_Bu = (exp_Ru / sum_R[:, None]).view(-1, views, logits_Ru.shape[1]).mean(1)
    return mean_Bu.float().double().clamp_min(LEAST_PROBABILITY).log()


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
