"""Big local files, written past the page cache."""

import errno
import fcntl
import io
import mmap
import os
from typing import Any

BUFFER_BYTES = 4 * 2**20


class DirectFile(io.RawIOBase):
    """Appends to the open, empty file `file` in whole buffers that go straight to the disk, where that is possible.

    What is written once and not read soon needs no pages of memory: to find them, fill them and clean them took the
    kernel five to fifty times as long as the disk's own copying. A file system that cannot do it is written to as
    usual. Nothing counts as written before `flush`, which comes last; the descriptor stays the caller's.
    """

    def __init__(self, file: int) -> None:
        self._file, self._filled = file, 0
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)  # begins on a page, as the disk wants it
        self._direct = _set_direct(file, True)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Take all of `data`. OSError where the disk does not."""
        left = memoryview(data)
        while left:
            end = min(self._filled + len(left), BUFFER_BYTES)
            taken = end - self._filled
            self._buffer[self._filled : end] = left[:taken]
            self._filled, left = end, left[taken:]
            if self._filled == BUFFER_BYTES:
                self._empty()
        return len(data)

    def flush(self) -> None:
        """Write what is left, which is no whole buffer; after it only whole files are sure to go on well."""
        if self._filled:
            if self._direct:
                self._direct = _set_direct(self._file, False)
            self._empty()

    def _empty(self) -> None:
        with memoryview(self._buffer) as whole:
            left = whole[: self._filled]
            while left:
                try:
                    left = left[os.write(self._file, left) :]
                except OSError as exc:
                    # Some file systems refuse only now; others took part of a buffer, and what is left lies askew.
                    if exc.errno != errno.EINVAL or not self._direct:
                        raise
                    self._direct = _set_direct(self._file, False)
            left.release()
        self._filled = 0


def _set_direct(file: int, on: bool) -> bool:
    """Whether writes go past the cache now."""
    if not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:  # a file system that cannot
        return False
    return on
