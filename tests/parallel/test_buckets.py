"""Sums over the wire in few large pieces. Real ranks: tests/ranks/test_optim.py."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.parallel.buckets import sum_in_buckets


@pytest.mark.parametrize(
    ("limit", "sizes"), [(100, [23]), (23, [23]), (22, [18, 5]), (12, [12, 11]), (10, [12, 6, 5]), (1, [12, 6, 5])]
)
def test_few_buckets_of_at_most_the_limit(limit: int, sizes: list[int]) -> None:
    """A larger tensor goes alone, order is kept, and what comes back lies where it was, whatever its memory format."""
    tensors = [torch.arange(12.0).view(1, 3, 2, 2).to(memory_format=torch.channels_last), torch.ones(6), -torch.ones(5)]
    before, sent = [tensor.clone() for tensor in tensors], []

    def doubled(values: Tensor, **named: Any) -> None:
        sent.append(values.numel())
        values.mul_(2)

    with patch.object(dist, "all_reduce", doubled):
        sum_in_buckets(tensors, None, limit)  # type: ignore[arg-type]
    assert sent == sizes
    assert all(torch.equal(tensor, 2 * old) for tensor, old in zip(tensors, before, strict=True))
    sum_in_buckets([], None, limit)  # type: ignore[arg-type]
