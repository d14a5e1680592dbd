"""Sample numbers -> raw samples (key, JPEG bytes, label), read by offset out of the tars."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from shards import storage
from shards.cache import Ahead, ShardCache, Upcoming
from shards.errors import StorageFault
from shards.index import ShardIndex
from shards.storage import shown
from shards.tars import picture_key

MAX_OPEN_FILES = 256  # a descriptor also keeps its shard in the cache
RANGE_REQUESTS = 16  # at a time


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


@dataclass(frozen=True)
class _Wanted:
    """A sample and its row in the index; without `crc` only its header is wanted."""

    sample_id: int
    shard: int
    head: int
    offset: int
    length: int
    label: int
    crc: int | None

    @property
    def start(self) -> int:
        return self.offset - self.head

    @property
    def total(self) -> int:
        """Bytes to read."""
        return self.head if self.crc is None else self.head + self.length

    def checked(self, data: bytes, url: str) -> RawSample:
        """The sample, if these are its bytes. Raises StorageFault."""
        try:
            key = picture_key(data[: self.head], self.length)
            found = crc32(memoryview(data)[self.head :])
            if self.crc is not None and found != self.crc:
                raise ValueError(f"other bytes than were indexed (CRC-32 {found:08x}, expected {self.crc:08x})")
        except ValueError as exc:
            raise StorageFault(
                f"{shown(url)} is not what the index describes: sample {self.sample_id} at byte {self.start} has "
                f"{exc}; bring the right file back or index it again"
            ) from exc
        return RawSample(self.sample_id, key, data[self.head :], self.label, shown(url))


class ShardReader:
    """Reads samples of one index in any order. Files are opened when first needed, so that it travels to a worker.

    Local shards are read in place. Others come whole from `cache`, where there is one, and are fetched into it ahead of
    need as `upcoming` says (such as Order.upcoming); else each sample by a range of its shard. Every picture's bytes
    are compared with the index.
    """

    def __init__(self, index: ShardIndex, cache: ShardCache | None = None, upcoming: Upcoming | None = None) -> None:
        self.index = index
        self._given = (index, cache, upcoming)
        self._cache = cache if storage.local_path(index.folder) is None else None
        self._ahead = Ahead(self._cache, index, upcoming) if self._cache is not None and upcoming is not None else None
        self.opened: set[int] = set()
        self._sized: set[int] = set()
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, least recently used first

    def read(self, sample_ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[RawSample]:
        """The samples asked for, in that order. Numbers are 0..len(index)-1 (else IndexError).

        StorageFault, naming the shard, where a file is missing or is not what the index describes.
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.index)):
            raise IndexError(f"sample numbers {ids.min()}..{ids.max()} outside 0..{len(self.index) - 1}")
        rows = self.index.samples[ids]
        wanted = [_Wanted(i, *row) for i, row in zip(ids.tolist(), rows.tolist(), strict=True)]
        found = [self._on_disk(one) for one in wanted]
        missing = [one for one, sample in zip(wanted, found, strict=True) if sample is None]
        if missing:
            # Each waits for its own answer; and one server's slowness is not paid once a sample.
            with ThreadPoolExecutor(RANGE_REQUESTS) as pool:
                ranged = pool.map(self._by_range, missing)
                return [next(ranged) if sample is None else sample for sample in found]
        return [sample for sample in found if sample is not None]

    def key(self, sample_id: int) -> str:
        """The key alone of one sample, without its picture. StorageFault as `read`."""
        one = replace(_Wanted(sample_id, *self.index.samples[sample_id].item()), crc=None)
        return (self._on_disk(one) or self._by_range(one)).key

    def stands_at(self, position: int) -> None:
        """Say from which position on the line the next samples are: shards that come next are fetched in advance."""
        if self._ahead is not None:
            self._ahead.at(position)

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"given": self._given}  # descriptors and threads mean nothing in another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["given"])  # type: ignore[misc]

    def _on_disk(self, one: "_Wanted") -> RawSample | None:
        """Out of a local shard, or out of the cache; None where it has to be asked for by a range."""
        url = self.index.shard_url(one.shard)
        if storage.local_path(url) is None:
            return self._in_cache(one, url)
        data = self._local_bytes(one.shard, url, one.start, one.total)
        if len(data) != one.total:
            raise StorageFault(f"{url} gave {len(data)} bytes from byte {one.start} where {one.total} were asked for")
        return one.checked(data, url)

    def _in_cache(self, one: "_Wanted", url: str) -> RawSample | None:
        """None where there is no cache, no room in it, or the shard has rotted there."""
        if self._cache is None:
            return None
        file = self._files.get(one.shard)
        if file is None:
            file = self._cache.open(url, self.index.shards[one.shard])
            if file is None:
                return None
            self._keep(one.shard, file)
        self._files.move_to_end(one.shard)
        try:
            return one.checked(os.pread(file, one.total, one.start), url)
        except (OSError, StorageFault) as exc:
            logging.getLogger("shards").warning("in the cache: %s; it is fetched again", exc)
            os.close(self._files.pop(one.shard))
            self._cache.drop(self.index.shards[one.shard])
            return None

    def _by_range(self, one: "_Wanted") -> RawSample:
        """By several threads at a time."""
        url = self.index.shard_url(one.shard)
        if one.shard not in self._sized:
            self._check_size(one.shard, url, storage.size_bytes(url))
            self._sized.add(one.shard)
        self.opened.add(one.shard)
        found: list[RawSample] = []
        storage.read_range(url, one.start, one.total, lambda data: found.append(one.checked(data, url)))
        return found[0]

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
        self._keep(shard, file)
        return file

    def _keep(self, shard: int, file: int) -> None:
        self._files[shard] = file
        self.opened.add(shard)
        if len(self._files) > MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])

    def _check_size(self, shard: int, url: str, found: int) -> None:
        expected = self.index.shards[shard].bytes
        if found != expected:
            raise StorageFault(
                f"{shown(url)} has {found} bytes where the index says {expected}: "
                "bring the right file back or index it again"
            )
