"""One build at a time of a split in a folder: two would take away each other's half-written tars and journal."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shards import storage
from shards.errors import DistAlexnetError, InputError, StorageFault
from shards.locks import held
from shards.names import LOCK_SUFFIX
from shards.storage import shown

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def alone(folder: str, split: str) -> Iterator[None]:
    """Hold `.<split>.build.lock` in `folder`. InputError, in one sentence, where another build has it.

    On a local disk the lock goes with the process, on network folders as far as they pass locks on between hosts. In an
    object store it is a file of its own: s3 and gs let only one be made, elsewhere two that start within one request
    are not told apart; one that a killed build of this host left is taken over, one of another host is for the user.
    """
    url = storage.join(folder, f".{split}{LOCK_SUFFIX}")
    path = storage.local_path(url)
    with _local(path, split) if path is not None else _remote(url, split):
        yield


@contextmanager
def _local(path: Path, split: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = stack.enter_context(held(path, _mine()))
        except OSError as exc:
            if exc.errno not in NO_LOCKS:
                raise InputError(f"cannot write {path}: {exc.strerror}") from exc
            free = True  # as well as can be told there
        if not free:
            raise _taken(str(path.parent), split, _read(str(path)))
        yield


@contextmanager
def _remote(url: str, split: str) -> Iterator[None]:
    mine = _mine()
    while not storage.create(url, mine.encode()):
        other = _read(url)
        if other == mine:  # the answer was lost, the file was made
            break
        if not _is_dead(other):
            remedy = f"; if that one is no longer there, take {shown(url)} away"
            raise _taken(storage.parent(url)[0], split, other, remedy)
        storage.remove(url)
    try:
        yield
    finally:
        with suppress(DistAlexnetError):  # then the next build here sees that this process is gone
            storage.remove(url)


def _mine() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def _read(url: str) -> str:
    """What the lock says, "" where it has gone."""
    with suppress(StorageFault):
        return storage.read_all(url).decode(errors="replace")
    return ""


def _is_dead(lock: str) -> bool:
    """Whether the build that made the lock is known to have ended."""
    host, pid = _host_and_pid(lock)
    if not lock:
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return pid == os.getpid()  # an earlier process had this number: this one has no other build under way here


def _host_and_pid(lock: str) -> tuple[str, int]:
    try:
        document = json.loads(lock)
        return str(document["host"]), int(document["pid"])
    except (ValueError, KeyError, TypeError):
        return "an unknown host", 0


def _taken(folder: str, split: str, lock: str, remedy: str = "") -> InputError:
    host, pid = _host_and_pid(lock)
    return InputError(
        f"another build of split {split} is writing into {shown(folder)} (process {pid} on {host}): let it end, or "
        f"name another folder{remedy}"
    )
