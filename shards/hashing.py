"""The one integer hash behind everything random in a run.

h(seed, stream name, position, logical unit) -> 64 bits. `position` is a sample's place on the endless line of samples
(shards/order.py), `unit` a logical index inside it (a neuron, an offset of the crop). Ranks, workers and steps are no
arguments, so what is drawn cannot depend on them.

The mixer is the finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
figure 17, Stafford's variant 13), written in signed 64-bit arithmetic that wraps around. NumPy arrays and torch tensors
have the same operators, so one definition serves the loader on the CPU and the dropout masks on the device.
Golden values in tests/shards/test_hashing.py hold it still: a changed hash is another run.
"""

import hashlib
from typing import Any, TypeVar

import numpy as np

Words = TypeVar("Words", bound=Any)  # np.ndarray of int64, or torch.Tensor of int64: same operators


def _signed(word: int) -> int:
    """The int64 with the bits of a 64-bit word."""
    word &= 0xFFFF_FFFF_FFFF_FFFF
    return word - (1 << 64) if word >> 63 else word


GOLDEN = _signed(0x9E37_79B9_7F4A_7C15)
_FIRST = _signed(0xBF58_476D_1CE4_E5B9)
_SECOND = _signed(0x94D0_49BB_1331_11EB)


def _shifted(x: Words, bits: int) -> Words:
    """Logical right shift of int64 words (`>>` alone keeps the sign)."""
    shifted: Words = (x >> bits) & ((1 << (64 - bits)) - 1)
    return shifted


def mix(x: Words) -> Words:
    """A bijection of int64 words (any shape) that scatters them."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    mixed: Words = x ^ _shifted(x, 31)
    return mixed


def stream_key(seed: int, stream: str) -> int:
    """The int64 that starts the named stream of a seed. `seed` is any integer of 64 bits."""
    name = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    start = np.array([_signed(name)], dtype=np.int64)
    return int(mix(mix(start + GOLDEN) ^ mix(np.array([_signed(seed)], dtype=np.int64) + GOLDEN))[0])


def hash_words(key: int, position: Words, unit: Words | int) -> Words:
    """h for arrays that broadcast together: int64 words of their common shape. `key` comes from `stream_key`."""
    words: Words = mix(mix(position * GOLDEN + key) + unit * GOLDEN)
    return words


def hash64(seed: int, stream: str, position: np.ndarray, unit: np.ndarray | int = 0) -> np.ndarray:
    """h(seed, stream, position, unit) as NumPy int64 words (shape: `position` and `unit` broadcast)."""
    where = np.asarray(position, dtype=np.int64)
    which = np.atleast_1d(np.asarray(unit, dtype=np.int64))
    words = hash_words(stream_key(seed, stream), np.atleast_1d(where), which)
    return words if where.ndim or np.ndim(unit) else words.reshape(())


def below(words: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Words of the hash as integers in [0, bound): the upper 32 bits times the bound (bias under bound / 2**32)."""
    return (_shifted(words, 32) * np.asarray(bound, dtype=np.int64)) >> 32


def unit_interval(words: Words) -> Words:
    """Words of the hash as the integers 0 .. 2**53 - 1: divide by 2**53 for a float64 in [0, 1)."""
    return _shifted(words, 11)


def open_interval(words: Words) -> Words:
    """Words of the hash as the odd integers 1 .. 2**53 - 1: divide by 2**53 for a float64 inside (0, 1).

    Symmetric about 1/2, never 0 or 1: where a distribution is drawn by the inverse of its distribution function.
    """
    odd: Words = (_shifted(words, 12) << 1) + 1
    return odd
