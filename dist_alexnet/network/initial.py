"""Initial values: functions of (seed, tensor name, logical element), so each rank draws only the rows it owns."""

import torch
from torch import Tensor

from dist_alexnet.parallel.layout import LogicalTensor
from shards.hashing import hash_words, stream_key, unit_interval

CHUNK_ELEMENTS = 1 << 22


def normal_rows(seed: int, tensor: LogicalTensor, rows: range, sd: float) -> Tensor:
    """Rows of the tensor's initial values, normal with mean 0: fp32 (rows, ...), on the CPU.

    Element j of row i is sd * ndtri((u + 1/2) / 2**52) in fp64, with u the upper 52 bits of h(seed, name, i, j): the
    inverse of the normal distribution at a hashed point. No generator has a state, so neither the cut nor the order of
    drawing matters.
    """
    key = stream_key(seed, f"init/{tensor.name}")
    width = tensor.row_elements
    unit = torch.arange(width)
    out = torch.empty(len(rows), width)
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, len(rows), step):
        row = torch.arange(rows.start + start, min(rows.start + start + step, rows.stop))
        words = unit_interval(hash_words(key, row[:, None], unit[None, :])) >> 1
        uniform = (words.double() + 0.5) / 2**52  # exact in fp64, and never 0 or 1
        out[start : start + len(row)] = torch.special.ndtri(uniform) * sd
    return out.view(len(rows), *tensor.shape[1:])
