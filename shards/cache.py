"""Whole shards on the node's own disk: each fetched once, shared by all processes and runs of the node.

A shard's file is named by the sha256 of its bytes, which the index says: what is there under that name is that shard,
from whatever URL. It appears by a rename once its bytes have that sum. While it comes it is `<sha256>.part`, locked
(flock) by the one who fetches it, and the lock goes with its process: a part without a lock is rubbish and is taken
away. Who reads a shard holds a shared lock on it, and locked shards are not evicted. So nothing here waits for a
process that has died, and none may take from another what it reads.
"""

import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shards import storage
from shards.errors import DistAlexnetError, InputError, StorageFault
from shards.index import ShardIndex, ShardRow
from shards.locks import in_use, is_at, locked
from shards.storage import shown

FREE_FRACTION = 0.05  # of the disk, which the cache leaves free
FETCH_TRIES = 3  # of a whole shard whose bytes came with another sum
POLL_S = 0.05
STALL_S = 120.0  # a part that has not grown, or a lock that has not gone, for so long is not waited for
REFUSED_S = 30.0  # before room for a shard is looked for again
AHEAD_THREADS = 2


@dataclass
class ShardCache:
    """Shards in `folder`, up to `max_bytes` (None: the disk but for FREE_FRACTION). It travels to other processes."""

    folder: Path
    max_bytes: int | None = None
    soon: frozenset[str] = frozenset()  # sha256 of shards that this process needs next: not evicted for others
    _refused_s: dict[str, float] = field(default_factory=dict)
    _failed: dict[str, tuple[float, StorageFault]] = field(default_factory=dict)  # when a fetch ended, and how
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"the cache {self.folder} (data.cache.dir) cannot be made: {exc.strerror}") from exc
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(f"the cache {self.folder} (data.cache.dir) cannot be written: name another folder")

    def open(self, url: str, row: ShardRow) -> int | None:
        """A descriptor of the whole shard, which is fetched from `url` where it is not there; the caller closes it.

        Waits for another process, or thread, that is fetching it. None where there is no room for it, which is said
        once. Raises StorageFault where its bytes do not come; those for which a thread of this process has asked in
        vain meanwhile are not asked for all over again.
        """
        begin_s = time.monotonic()
        while True:
            file = self._open(row)
            if file is not None or self._refused(row):
                return file
            failed_s, fault = self._failed.get(row.sha256, (float("-inf"), None))
            if fault is not None and failed_s >= begin_s:
                raise fault
            if self.fetch(url, row) is None:
                if self._stalled(row):
                    self._say(f"{row.name} has not come into the cache {self.folder} for {STALL_S:g} s", row)
                else:
                    time.sleep(POLL_S)

    def fetch(self, url: str, row: ShardRow, ahead: bool = False) -> bool | None:
        """Whether the shard is there in the end; None where another is fetching it, which is not waited for.

        False where there is no room: said once, but for a shard that is not needed yet (`ahead`).
        """
        if self._path(row).exists():
            return True
        if self._refused(row):
            return False
        try:
            with self._claimed(row) as part:
                return None if part is None else self._fill(part, url, row, ahead)
        except OSError as exc:  # the disk, not the storage: a StorageFault is none
            self._say(f"the cache {self.folder} fails ({exc.strerror})", row)
            return False

    def holds(self, row: ShardRow) -> bool:
        """Whether the shard is there, whole."""
        return self._path(row).exists()

    def come_bytes(self, rows: Iterable[ShardRow]) -> int:
        """How much of these shards is there by now, as far as the file system tells of those that are coming."""
        return sum(row.bytes if self.holds(row) else _written_bytes(self._part(row)) for row in rows)

    def drop(self, row: ShardRow) -> None:
        """Take away a shard whose file has rotted."""
        try:
            self._path(row).unlink(missing_ok=True)
        except OSError as exc:
            self._say(f"the cache {self.folder} fails ({exc.strerror})", row)

    def _path(self, row: ShardRow) -> Path:
        return self.folder / f"{row.sha256}.tar"

    def _part(self, row: ShardRow) -> Path:
        return self.folder / f"{row.sha256}.part"

    def _open(self, row: ShardRow) -> int | None:
        try:
            file = os.open(self._path(row), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._say(f"the cache {self.folder} fails ({exc.strerror})", row)
            return None
        try:
            _lock(file, fcntl.LOCK_SH)
        except OSError as exc:  # a file system without locks; or one who evicts hangs
            os.close(file)
            self._say(f"the cache {self.folder} fails ({exc.strerror})", row)
            return None
        if os.fstat(file).st_size != row.bytes:
            os.close(file)
            self.drop(row)
            return None
        with suppress(OSError):
            os.utime(file)  # last use, for eviction: not every file system keeps times of access
        return file

    @contextmanager
    def _claimed(self, row: ShardRow) -> Iterator[int | None]:
        """The locked, empty part of a shard; None where another has it, or has just finished it."""
        part = os.open(self._part(row), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not locked(part):
                yield None
                return
            # Locked, it may be no longer the file of that name: finished or cleaned away by another in between.
            own = is_at(part, self._part(row))
            try:
                yield part if own and not self._path(row).exists() else None
            finally:
                if is_at(part, self._part(row)):
                    self._part(row).unlink(missing_ok=True)  # a finished one has its other name by now
        finally:
            os.close(part)

    def _fill(self, part: int, url: str, row: ShardRow, ahead: bool) -> bool:
        os.ftruncate(part, 0)
        with self._alone():
            if not self._make_room(row, ahead):
                return False
            try:
                _reserve(part, row.bytes)  # a full disk says so now, and others see what is taken
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._say(f"the disk of the cache {self.folder} is full", row)
                return False
        try:
            self._download(part, url, row)
        except StorageFault as fault:
            self._failed[row.sha256] = time.monotonic(), fault
            raise
        os.fsync(part)
        os.rename(self._part(row), self._path(row))
        return True

    def _download(self, part: int, url: str, row: ShardRow) -> None:
        for number in range(1, FETCH_TRIES + 1):
            digest = hashlib.sha256()
            os.lseek(part, 0, os.SEEK_SET)

            def write(block: bytes, digest: "hashlib._Hash" = digest) -> None:
                digest.update(block)
                left = memoryview(block)
                while left:
                    left = left[os.write(part, left) :]

            storage.download(url, row.bytes, write)
            if digest.hexdigest() == row.sha256:
                return
            message = "%s came with another sha256 than the index says, try %d of %d"
            logging.getLogger("shards").warning(message, shown(url), number, FETCH_TRIES)
        raise StorageFault(
            f"{shown(url)} came {FETCH_TRIES} times with another sha256 than the index says: bring the right file back "
            "or index it again"
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time makes room, so that two do not count on the same."""
        file = os.open(self.folder / "room.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _make_room(self, row: ShardRow, ahead: bool) -> bool:
        """Evict the least recently used shards that nobody reads until `row` fits; nothing where it would not."""
        sizes = self._clean()
        disk = os.statvfs(self.folder)
        limit = sum(sizes.values()) + int((disk.f_bavail - FREE_FRACTION * disk.f_blocks) * disk.f_frsize)
        limit = limit if self.max_bytes is None else min(limit, self.max_bytes)
        excess = sum(sizes.values()) + row.bytes - limit
        chosen = []
        for path in sorted(sizes, key=_last_used_s):
            if excess <= 0:
                break
            if path.suffix == ".tar" and path.stem not in self.soon and not in_use(path):
                chosen.append(path)
                excess -= sizes[path]
        if excess > 0 and ahead:
            return False
        if excess > 0:
            what = f"up to {limit} bytes, and what is in it is in use or needed next"
            self._say(f"the cache {self.folder} has no room for {row.name} ({row.bytes} bytes; {what})", row)
            return False
        for path in chosen:
            path.unlink(missing_ok=True)  # a reader that has just opened it reads on
        return True

    def _clean(self) -> dict[Path, int]:
        """Bytes of all files; parts that died processes left are taken away."""
        sizes = {}
        for path in self.folder.iterdir():
            if path.suffix not in (".tar", ".part"):
                continue
            with suppress(FileNotFoundError):
                if path.suffix == ".part" and path.stat().st_size and not in_use(path):
                    path.unlink()
                    continue
                sizes[path] = path.stat().st_size
        return sizes

    def _stalled(self, row: ShardRow) -> bool:
        try:
            return time.time() - self._part(row).stat().st_mtime > STALL_S
        except FileNotFoundError:
            return False

    def _refused(self, row: ShardRow) -> bool:
        return time.monotonic() < self._refused_s.get(row.sha256, float("-inf"))

    def _say(self, what: str, row: ShardRow) -> None:
        """Refuse the shard for a while, and say why; each kind of reason once."""
        self._refused_s[row.sha256] = time.monotonic() + REFUSED_S
        kind = what.replace(row.name, "").split("(")[0]
        if kind not in self._said:
            self._said.add(kind)
            logging.getLogger("shards").warning("%s: reading samples by ranges instead", what)


Upcoming = Callable[[int], tuple[Sequence[int], int]]  # position -> shards in order of need, position to ask again at


class Ahead:
    """Fetches, in threads, the shards that come next. Faults are left to the reader, who meets them by himself."""

    def __init__(self, cache: ShardCache, index: ShardIndex, upcoming: Upcoming) -> None:
        self._cache, self._index, self._upcoming = cache, index, upcoming
        self._from = self._until = 0
        self._todo: deque[int] = deque()
        self._threads: list[threading.Thread] = []

    def at(self, position: int) -> None:
        """Say where reading stands; returns at once."""
        if self._from <= position < self._until:
            return
        shards, self._until = self._upcoming(position)
        self._from = position
        self._cache.soon = frozenset(self._index.shards[shard].sha256 for shard in shards)
        self._todo = deque(shards)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < AHEAD_THREADS:
            # They end with the list, so nothing has to be closed; and with the process, whatever they are doing.
            self._threads.append(threading.Thread(target=self._run, name="shards-ahead", daemon=True))
            self._threads[-1].start()

    def _run(self) -> None:
        while True:
            try:
                shard = self._todo.popleft()
            except IndexError:
                return
            with suppress(DistAlexnetError):
                if self._cache.fetch(self._index.shard_url(shard), self._index.shards[shard], ahead=True) is False:
                    self._todo.clear()  # no room for what comes later


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS
        os.ftruncate(file, size)


def _lock(file: int, kind: int) -> None:
    """Lock a file that others hold for moments only. OSError where one has hung, or was suspended, with its lock."""
    until_s = time.monotonic() + STALL_S
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError as exc:
            if time.monotonic() > until_s:
                raise TimeoutError(errno.ETIMEDOUT, f"a process has held a lock in it for {STALL_S:g} s") from exc
        time.sleep(POLL_S)


def _written_bytes(part: Path) -> int:
    """Up to which byte a file with reserved room has been written; 0 where it is not there."""
    try:
        with part.open("rb") as file:
            return os.lseek(file.fileno(), 0, os.SEEK_HOLE)
    except (OSError, AttributeError):  # not there, or not known here
        return 0


def _last_used_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
