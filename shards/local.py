"""Files of the local disk that are there whole, after a power cut too, or not at all."""

import glob
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from shards.direct import DirectFile


def write(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file; one that is there is replaced, and of two writers the last wins. Folders on the way are made.

    `data` is the bytes, or a function that appends them to the file it is given, which goes past the page cache: what
    it raises goes on, and nothing appears. Raises OSError.
    """
    _make_folders(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb", buffering=0) as file:
            if callable(data):
                direct = DirectFile(file.fileno())
                data(cast(BinaryIO, direct))
                direct.flush()
            else:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_names(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Write a file that is not there yet; False where there is one, which stays as it is. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    write(draft, data)
    try:
        os.link(draft, path)
        _sync_names(path.parent)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create_unlinked(path, data)
    finally:
        draft.unlink()
    return True


def remove_leftovers(path: Path) -> None:
    """Take away what writers of this file left behind when they were killed. Only where nobody writes it now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _create_unlinked(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _make_folders(folder: Path) -> None:
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in made:
        _sync_names(one.parent)


def _sync_names(folder: Path) -> None:
    """A new name itself must survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
