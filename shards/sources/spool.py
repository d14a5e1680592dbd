"""Folders for what a source copies meanwhile: they go in the end, and those of killed builds with the next one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError
from shards.locks import in_use, is_at, locked

PREFIX = "dist-alexnet-spool-"


@contextmanager
def spool_folder(place: Path | None = None) -> Iterator[str]:
    """A new folder in `place` (else where the system keeps temporary files), which is taken away in the end.

    What killed processes left there goes now: such a folder is locked while its process lives. InputError where nothing
    can be made there.
    """
    room = Path(tempfile.gettempdir()) if place is None else place
    if not room.is_dir():
        raise InputError(f"there is no folder {room} for --spool: make it, or leave the option out")
    for old in room.glob(f"{PREFIX}*"):
        _remove_unless_in_use(old)
    try:
        folder, lock = _locked_folder(room)
    except OSError as exc:
        raise InputError(f"cannot write {room} ({exc.strerror}): name a folder with room by --spool") from exc
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(room: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor whose lock says that it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=room))
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        locked(lock)
        if is_at(lock, folder):
            return folder, lock
        os.close(lock)  # another took it for a rest in the moment between


def _remove_unless_in_use(old: Path) -> None:
    try:
        if not in_use(old):
            shutil.rmtree(old, ignore_errors=True)
    except OSError:  # another user's, or a file system without locks: left as it is
        pass
