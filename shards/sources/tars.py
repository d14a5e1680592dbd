"""Another shard set: to be shuffled anew, cut into tars of another size, or made smaller."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import overload

import numpy as np
from numpy.typing import NDArray

from shards import storage
from shards.errors import InputError
from shards.index import ShardIndex, read_index
from shards.sources.slices import read_slice
from shards.sources.source import ClassInfo, SourceSample
from shards.storage import shown
from shards.tars import picture_key, scan_tar


@dataclass(frozen=True)
class TarsSource:
    """The set whose index, or pattern, is `place`: one split, whatever name it gets. Pictures are kept as they are,
    damaged ones too; a leading `./` of a key is dropped, and so are members other than picture and label.

    On a local disk pictures are read by position; elsewhere each tar is read once for its keys, and then each picture.
    """

    place: str
    recipe = "tars"

    @property
    def classes(self) -> tuple[str, ...]:
        """The set's classes; their numbers where it has no names."""
        index = self._index
        return index.classes or tuple(str(label) for label in range(index.num_classes))

    @property
    def class_info(self) -> ClassInfo | None:
        """What the set's index knows of its classes."""
        return self._index.class_info

    def samples(self, split: str) -> Sequence[SourceSample]:
        """All samples, by shard and place. StorageFault or InputError for tars that are not what the index says."""
        index = self._index
        keys = [_keys(index, shard) for shard in range(len(index.shards))]
        return _TarSamples(index, np.concatenate(keys))

    @cached_property
    def _index(self) -> ShardIndex:
        return read_index(self.place)


@dataclass(frozen=True, eq=False)
class _TarSamples(Sequence[SourceSample]):
    rows: ShardIndex
    keys: NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> SourceSample: ...
    @overload
    def __getitem__(self, at: slice) -> list[SourceSample]: ...
    def __getitem__(self, at: int | slice) -> SourceSample | list[SourceSample]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        row = self.rows.samples[at]
        url = self.rows.shard_url(int(row["shard"]))
        offset, length = int(row["offset"]), int(row["length"])
        path = storage.local_path(url)
        load = partial(storage.read_range, url, offset, length)
        if path is not None:
            load = partial(read_slice, os.fspath(path), offset, length)
        key = bytes(self.keys[at]).decode("utf-8", "surrogateescape")
        return SourceSample(key, int(row["label"]), load, length)


def _keys(index: ShardIndex, shard: int) -> NDArray[np.bytes_]:
    """The keys of one shard's samples, as UTF-8 bytes."""
    url, row = index.shard_url(shard), index.shards[shard]
    if storage.size_bytes(url) != row.bytes:
        raise InputError(f"{shown(url)} is not the {row.bytes} bytes that its index says: index the set again")
    path = storage.local_path(url)
    if path is None:
        with storage.open_read(url) as stream:
            scan = scan_tar(stream, row.name, shard, shown(url))
        if scan.row.sha256 != row.sha256:
            raise InputError(f"{shown(url)} has another sha256 than its index says: index the set again")
        keys = list(scan.keys)
    else:
        start = int(index.samples_per_shard[:shard].sum())
        rows = index.samples[start : start + row.samples][["offset", "head", "length"]]
        keys = [_key(os.fspath(path), *place) for place in rows.tolist()]
    return np.array([key.removeprefix("./").encode("utf-8", "surrogateescape") for key in keys])


def _key(path: str, offset: int, head: int, length: int) -> str:
    try:
        return picture_key(read_slice(path, offset - head, head), length)
    except ValueError as exc:
        raise InputError(f"{path} is not what its index describes ({exc}): index the set again") from exc
