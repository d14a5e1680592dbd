"""URL -> bytes: the only door to fsspec.

A place is a path of the local disk (`data/digits`, `file:///data/digits`) or a URL of one of SCHEMES. Local files are
read and written directly; everything else goes through fsspec, with bounded retries. Nothing here starts a process.
"""

import errno
import io
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from shards.errors import InputError, StorageFault

SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0)
STREAM_BLOCK_BYTES = 8 * 2**20
USERS_MISTAKES = (errno.EACCES, errno.EEXIST, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

T = TypeVar("T")


def check_url(url: str) -> None:
    """Refuse what is no plain place for bytes: `pipe:`, `::` chains, any scheme outside SCHEMES (InputError)."""
    if not url or any(ord(c) < 32 for c in url):
        raise InputError(f"the place {url!r} is empty or holds control characters: give a path or a URL")
    scheme = _scheme(url)
    if scheme is not None and (scheme not in SCHEMES or not url.startswith(f"{scheme}://")):
        # The rest is not repeated: what stands behind such a scheme may be a command with a password in it.
        raise InputError(
            f"a URL that begins with {scheme + ':'!r} is not read: give a local path or one of "
            f"{', '.join(s + '://' for s in SCHEMES)}"
        )
    if scheme not in (None, "file") and "@" in urlsplit(url).netloc:
        raise InputError(
            f"the URL {shown(url)!r} holds a user or a password, which would end up in logs: give them to the client "
            "library by its environment variables or its credentials file"
        )
    if "::" in url:
        raise InputError(f"the URL {shown(url)!r} chains file systems with '::', which is not read: give one plain URL")


def shown(url: str) -> str:
    """The URL as it may stand in a message: without user, password, query and fragment."""
    if _scheme(url) in (None, "file"):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def local_path(url: str) -> Path | None:
    """The path of a local URL, None for one elsewhere. InputError as check_url."""
    check_url(url)
    scheme = _scheme(url)
    if scheme is None:
        return Path(url).expanduser()
    return Path(url.removeprefix("file://")) if scheme == "file" else None


def join(url: str, name: str) -> str:
    """The URL of the file `name` in the folder `url`. InputError where the name would leave the folder."""
    check_url(url)
    check_name(name)
    return f"{url.rstrip('/')}/{name}"


def check_name(name: str) -> None:
    """InputError unless `name` is one plain file name: no separators, no `..`, no control characters."""
    if not name or name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
        raise InputError(f"the file name {name!r} has a separator or is '..': give a bare name")


def parent(url: str) -> tuple[str, str]:
    """(folder URL, file name) of a URL; the folder of a bare name is `.`."""
    check_url(url)
    folder, slash, name = url.rpartition("/")
    return (folder or slash or "."), name


def same_place(a: str, b: str) -> bool:
    """Whether two folder URLs are the same folder, as far as their spelling (and local links) can tell."""
    path_a, path_b = local_path(a), local_path(b)
    if path_a is not None and path_b is not None:
        return path_a.resolve() == path_b.resolve()
    return a.rstrip("/") == b.rstrip("/")


def exists(url: str) -> bool:
    """Whether there is a file (or folder) at `url`. StorageFault where the storage does not answer."""
    path = local_path(url)
    if path is not None:
        return path.exists()
    return bool(_retried(url, lambda fs, remote: fs.exists(remote)))


def size_bytes(url: str) -> int:
    """Bytes of the file at `url`. StorageFault where it is missing or of unknown size."""
    path = local_path(url)
    if path is not None:
        try:
            return path.stat().st_size
        except OSError as exc:
            raise _fault(url, exc) from exc
    size = _retried(url, lambda fs, remote: fs.info(remote)["size"])
    if size is None:
        raise StorageFault(f"the server of {shown(url)} does not say how long the file is: copy it to other storage")
    return int(size)


def open_read(url: str) -> io.BufferedReader:
    """A stream over the whole file; remote files are fetched in blocks, each with retries. StorageFault if missing."""
    path = local_path(url)
    if path is None:
        return io.BufferedReader(_RangeStream(url, size_bytes(url)), STREAM_BLOCK_BYTES)
    try:
        return path.open("rb")
    except OSError as exc:
        raise _fault(url, exc) from exc


def read_all(url: str) -> bytes:
    """The whole file. StorageFault where it is missing or does not come whole after the retries."""
    path = local_path(url)
    if path is not None:
        try:
            return path.read_bytes()
        except OSError as exc:
            raise _fault(url, exc) from exc
    return cast(bytes, _retried(url, lambda fs, remote: fs.cat_file(remote)))


def read_range(url: str, start: int, length: int) -> bytes:
    """Exactly `length` bytes from byte `start`. StorageFault where the file is missing or gives fewer (or more)."""
    path = local_path(url)
    if path is None:
        return _retried(url, lambda fs, remote: _whole(url, fs.cat_file(remote, start, start + length), start, length))
    try:
        with path.open("rb") as file:
            file.seek(start)
            return _whole(url, file.read(length), start, length)
    except OSError as exc:
        raise _fault(url, exc) from exc


def write_atomic(url: str, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file that appears whole or not at all; folders on the way are made.

    `data` is the bytes, or a function that writes them to the open file it is given (which it may also read back).
    When that function raises, nothing appears and its error goes on. Locally: a hidden `.tmp` file in the same folder,
    fsync, rename. Elsewhere: a local temporary file, then one upload. InputError where the place may not be written,
    StorageFault where the storage fails.
    """
    path = local_path(url)
    try:
        if path is not None:
            _write_local(path, data)
        else:
            _write_remote(url, data)
    except OSError as exc:
        kind = InputError if exc.errno in USERS_MISTAKES else StorageFault
        raise kind(f"cannot write {shown(url)}: {exc.strerror or type(exc).__name__}") from exc


def _write_local(path: Path, data: bytes | Callable[[BinaryIO], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x+b") as file:
            _fill(file, data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)


def _write_remote(url: str, data: bytes | Callable[[BinaryIO], None]) -> None:
    # Never write into an open remote file: fsspec uploads what it has when the writer fails half way.
    with tempfile.NamedTemporaryFile(suffix=".tmp") as file:
        _fill(cast(BinaryIO, file), data)
        file.flush()
        _retried(url, lambda fs, remote: fs.put_file(file.name, remote))


def _fill(file: BinaryIO, data: bytes | Callable[[BinaryIO], None]) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data)


class _RangeStream(io.RawIOBase):
    """A remote file as a stream of range reads, so that a dropped connection is retried where it broke."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._at = url, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length > 0:
            buffer[:length] = read_range(self._url, self._at, length)
            self._at += length
        return max(length, 0)

    def readall(self) -> bytes:
        data = read_range(self._url, self._at, self._size - self._at)
        self._at = self._size
        return data


def _retried(url: str, act: Callable[[Any, str], T]) -> T:
    """act(file system, path), tried again after each of RETRY_DELAYS_S unless the error is there to stay."""
    for delay_s in (*RETRY_DELAYS_S, None):
        try:
            fs, remote = _file_system(url)
            return act(fs, remote)
        except InputError:
            raise
        except Exception as exc:
            if delay_s is None or _lasting(exc):
                # An error of a client library may repeat the whole URL: kept out where the URL holds a secret.
                raise _fault(url, exc) from (exc if shown(url) == url else None)
            logging.getLogger("shards").warning("%s: %s, trying again in %g s", shown(url), type(exc).__name__, delay_s)
            time.sleep(delay_s)
    raise AssertionError("unreachable")


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # only remote places pay for this import

    try:
        fs, remote = url_to_fs(url)
    except ImportError as exc:
        raise InputError(
            f"reading {_scheme(url)}:// needs a package that is not installed ({exc}): install it, e.g. with the "
            "extra dist-alexnet[s3] or dist-alexnet[gcs]"
        ) from exc
    return fs, remote


def _lasting(exc: Exception) -> bool:
    status = getattr(exc, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return isinstance(exc, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | TypeError)


def _whole(url: str, data: bytes, start: int, length: int) -> bytes:
    if len(data) != length:
        raise StorageFault(
            f"{shown(url)} gave {len(data)} bytes from byte {start} where {length} were asked for: "
            "the file is cut, changed or badly served"
        )
    return data


def _fault(url: str, exc: Exception) -> StorageFault:
    if isinstance(exc, StorageFault):
        return exc
    if isinstance(exc, FileNotFoundError):
        return StorageFault(f"{shown(url)} is missing: check the path, or bring the file back")
    status = getattr(exc, "status", None)
    what = f"status {status}" if isinstance(status, int) else getattr(exc, "strerror", None) or type(exc).__name__
    return StorageFault(f"{shown(url)} could not be read or written ({what}): check the storage, then start again")


def _scheme(url: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):", url)
    return match.group(1) if match else None
