"""Pictures that lie as they are inside big local files, known by column: 40 bytes a sample instead of an object."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.sources.source import SourceSample

OPEN_FILES = 32
PICTURE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True, eq=False)
class Slices(Sequence[SourceSample]):
    """Samples by column, each of shape (samples,): `keys` as UTF-8 bytes, `labels`, and where the picture lies: which
    of `files`, `offsets` and `lengths` in bytes. A SourceSample is made when asked for.
    """

    files: tuple[str, ...]
    keys: NDArray[np.bytes_]
    labels: NDArray[np.integer[Any]]
    which: NDArray[np.integer[Any]]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> SourceSample: ...
    @overload
    def __getitem__(self, at: slice) -> "Slices": ...
    def __getitem__(self, at: int | slice) -> "SourceSample | Slices":
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        key = bytes(self.keys[at]).decode("utf-8", "surrogateescape")
        length = int(self.lengths[at])
        load = partial(read_picture, self.files[self.which[at]], int(self.offsets[at]), length, key)
        return SourceSample(key, int(self.labels[at]), load, length)

    def take(self, rows: NDArray[np.integer[Any]]) -> "Slices":
        """The samples of these rows, in that order."""
        columns = (self.keys, self.labels, self.which, self.offsets, self.lengths)
        return Slices(self.files, *(column[rows] for column in columns))

    def by_key(self) -> "Slices":
        """The same samples in the order of their keys, so that how an archive was packed does not matter."""
        return self.take(np.argsort(self.keys, kind="stable"))


def read_slice(path: str, offset: int, length: int) -> bytes:
    """`length` bytes of a local file from byte `offset`. InputError where they are not there."""
    try:
        data = os.pread(_opened(path).fileno(), length, offset)
    except OSError as exc:
        raise InputError(f"{path} could not be read ({exc.strerror}): check it, then start again") from exc
    if len(data) != length:
        raise InputError(f"{path} ends before byte {offset + length}: it was changed while it was read; start again")
    return data


def read_picture(path: str, offset: int, length: int, key: str) -> bytes:
    """The bytes of a JPEG or PNG picture, by their first bytes and not by their name; InputError for anything else."""
    data = read_slice(path, offset, length)
    if not data.startswith(PICTURE_MAGIC):
        raise InputError(
            f"the picture {key!r} at byte {offset} of {path} is neither JPEG nor PNG (it begins with {data[:8]!r}): "
            "bring the archive as it was published"
        )
    return data


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: str) -> BinaryIO:
    # On network file systems opening costs more than reading one picture. The oldest is closed when it falls out.
    return open(path, "rb", buffering=0)
