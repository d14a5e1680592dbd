"""Many small tensors over the wire as few large ones."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def sum_in_buckets(tensors: list[Tensor], group: dist.ProcessGroup, limit: int) -> None:
    """Sum `tensors`, of one dtype, over `group` in place: one all-reduce for each bucket of at most `limit` elements.

    A larger tensor is a bucket of its own. All ranks of the group call it with tensors of the same sizes, in the same
    order.
    """
    for bucket in _buckets(tensors, limit):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        for tensor, values in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(values.view_as(tensor))


def _buckets(tensors: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        if bucket and elements + tensor.numel() > limit:
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket
