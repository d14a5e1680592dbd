"""Locks on files that go with the process that holds them (flock): none outlives a kill."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def locked(file: int) -> bool:
    """Lock the open file for this process alone; False where another has it. OSError of a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def in_use(path: Path) -> bool:
    """Whether anybody holds a lock on the file or folder (or has taken it away)."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return not locked(file)
    finally:
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def held(path: Path, text: str) -> Iterator[bool]:
    """Make the file `path`, lock it, and take it away in the end; False, and nothing done, where another has it.

    `text` is written into it, for those who find it. OSError where the place, or its file system, cannot.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not locked(file) or not is_at(file, path):  # or the one who had it took it away just now
            yield False
            return
        os.ftruncate(file, 0)
        os.write(file, text.encode())
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)
