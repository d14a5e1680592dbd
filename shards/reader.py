"""Sample numbers -> raw samples (key, JPEG bytes, label), read by offset out of the tars."""

import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import storage
from shards.errors import StorageFault
from shards.index import ShardIndex
from shards.storage import shown
from shards.tars import picture_key

MAX_OPEN_FILES = 64


@dataclass(frozen=True)
class RawSample:
    """One sample as it lies in the shards: its number in the index, key, undecoded JPEG, class, and its shard's URL as
    it may stand in a log.
    """

    sample_id: int
    key: str
    jpeg: bytes
    label: int
    url: str


class ShardReader:
    """Reads samples of one index in any order. Files are opened when first needed, so that it travels to a worker."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self.opened: set[int] = set()
        self._checked: set[int] = set()
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, least recently used first

    def read(self, sample_ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[RawSample]:
        """The samples asked for, in that order. Numbers are 0..len(index)-1 (else IndexError).

        StorageFault, naming the shard, where a file is missing or is not what the index describes.
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.index)):
            raise IndexError(f"sample numbers {ids.min()}..{ids.max()} outside 0..{len(self.index) - 1}")
        rows = self.index.samples[ids]
        return [self._sample(i, *row) for i, row in zip(ids.tolist(), rows.tolist(), strict=True)]

    def check_bytes(self, sample_id: int) -> None:
        """Read the sample's whole shard and compare it with the index, once a shard. Raises StorageFault.

        For a picture that does not decode: bytes that rotted are a fault of storage, and not of the picture.
        """
        shard = int(self.index.samples["shard"][sample_id])
        if shard in self._checked:
            return
        url = self.index.shard_url(shard)
        with storage.open_read(url) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.index.shards[shard].sha256:
            raise StorageFault(f"{shown(url)} has another sha256 than the index says: bring the right file back")
        self._checked.add(shard)

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index}  # descriptors mean nothing in another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["index"])  # type: ignore[misc]

    def _sample(self, sample_id: int, shard: int, head: int, offset: int, length: int, label: int) -> RawSample:
        url = self.index.shard_url(shard)
        data = self._bytes(shard, url, offset - head, head + length)
        try:
            key = picture_key(data[:head], length)
        except ValueError as exc:
            raise StorageFault(
                f"{shown(url)} is not what the index describes: sample {sample_id} at byte {offset - head} has {exc}; "
                "bring the right file back or index it again"
            ) from exc
        return RawSample(sample_id, key, data[head:], label, shown(url))

    def _bytes(self, shard: int, url: str, start: int, length: int) -> bytes:
        path = storage.local_path(url)
        if path is None:
            if shard not in self.opened:
                self._check_size(shard, url, storage.size_bytes(url))
            self.opened.add(shard)
            return storage.read_range(url, start, length)
        data = self._local_bytes(shard, url, start, length)
        if len(data) != length:
            raise StorageFault(f"{url} gave {len(data)} bytes from byte {start} where {length} were asked for")
        return data

    def _local_bytes(self, shard: int, url: str, start: int, length: int) -> bytes:
        """pread, tried again with the file opened anew: a network folder may lose a handle for a moment."""
        for delay_s in (*storage.RETRY_DELAYS_S, None):
            try:
                return os.pread(self._file(shard, url), length, start)
            except OSError as exc:
                if delay_s is None or isinstance(exc, FileNotFoundError | PermissionError | IsADirectoryError):
                    raise StorageFault(f"{url} could not be read ({exc.strerror}): check it, then start again") from exc
                logging.getLogger("shards").warning("%s: %s, trying again in %g s", url, exc.strerror, delay_s)
            stale = self._files.pop(shard, None)
            if stale is not None:
                with suppress(OSError):
                    os.close(stale)
            time.sleep(delay_s)
        raise AssertionError("unreachable")

    def _file(self, shard: int, url: str) -> int:
        file = self._files.get(shard)
        if file is not None:
            self._files.move_to_end(shard)
            return file
        file = os.open(os.fspath(storage.local_path(url) or url), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check_size(shard, url, os.fstat(file).st_size)
        except StorageFault:
            os.close(file)
            raise
        self._files[shard] = file
        self.opened.add(shard)
        if len(self._files) > MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return file

    def _check_size(self, shard: int, url: str, found: int) -> None:
        expected = self.index.shards[shard].bytes
        if found != expected:
            raise StorageFault(
                f"{shown(url)} has {found} bytes where the index says {expected}: "
                "bring the right file back or index it again"
            )
