"""Initial values: functions of (seed, tensor name, logical element), so each rank draws only the rows it owns."""

from collections.abc import Callable

import torch
from torch import Tensor

from dist_alexnet.network.sizes import Learned
from dist_alexnet.parallel.layout import LogicalTensor
from shards.hashing import hash_words, open_interval, stream_key

CHUNK_ELEMENTS = 1 << 22


def initial_rows(seed: int, learned: Learned, rows: range) -> Tensor:
    """Rows of a parameter's initial values: fp32 (rows, ...), on the CPU."""
    tensor, initial = learned.tensor, learned.initial
    if initial.kind == "constant":
        return torch.full((len(rows), *tensor.shape[1:]), initial.size)
    if initial.kind == "uniform":
        return _uniform_rows(seed, tensor, rows).mul_(2 * initial.size).sub_(initial.size)
    return normal_rows(seed, tensor, rows, initial.size)


def normal_rows(seed: int, tensor: LogicalTensor, rows: range, sd: float) -> Tensor:
    """Rows of normal values with mean 0: fp32 (rows, ...), on the CPU.

    Element j of row i is sd * ndtri(u), u in (0, 1) from h(seed, name, i, j): the inverse of the normal distribution at
    a hashed point. No generator has a state, so neither the cut nor the order of drawing matters.
    """
    return _drawn(seed, tensor, rows, lambda uniform: torch.special.ndtri(uniform) * sd)


def _uniform_rows(seed: int, tensor: LogicalTensor, rows: range) -> Tensor:
    """Rows of values uniform in (0, 1): fp32 (rows, ...)."""
    return _drawn(seed, tensor, rows, lambda uniform: uniform)


def _drawn(seed: int, tensor: LogicalTensor, rows: range, shaped: Callable[[Tensor], Tensor]) -> Tensor:
    """`shaped` of (u + 1/2) / 2**52 in fp64, with u the upper 52 bits of the hash of each element."""
    key = stream_key(seed, f"init/{tensor.name}")
    width = tensor.row_elements
    unit = torch.arange(width)
    out = torch.empty(len(rows), width)
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, len(rows), step):
        row = torch.arange(rows.start + start, min(rows.start + start + step, rows.stop))
        uniform = open_interval(hash_words(key, row[:, None], unit[None, :])).double() / 2**53  # exact in fp64
        out[start : start + len(row)] = shaped(uniform)
    return out.view(len(rows), *tensor.shape[1:])
