"""URL -> bytes: the only door to fsspec.

A place is a path of the local disk (`data/digits`, `file:///data/digits`) or a URL of one of SCHEMES. Local files are
read and written directly; everything else goes through fsspec: every request has a time limit, what fails is tried
again with growing pauses, and each failure is said. Nothing here starts a process.
"""

import errno
import io
import logging
import os
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from shards import local
from shards.errors import InputError, StorageFault

SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
RETRY_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # each is stretched or shrunk by up to half
REQUEST_S = 30.0  # time limit of a request, besides what its bytes take at the slowest rate that is put up with
SLOWEST_BYTES_PER_S = 256 * 2**10
STREAM_BLOCK_BYTES = 8 * 2**20
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # of the client of s3
CONDITIONAL = ("s3", "gs", "gcs", "memory")  # where fsspec has writes that fail if the file is there
# After so long a request for a block has failed for good: all tries, each at its limit, and the pauses between them.
BLOCK_S = REQUEST_S + STREAM_BLOCK_BYTES / SLOWEST_BYTES_PER_S
GIVES_UP_S = (len(RETRY_DELAYS_S) + 1) * BLOCK_S + 1.5 * sum(RETRY_DELAYS_S)
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


def check_writable(url: str) -> None:
    """InputError, as check_url or where it is known without asking that nothing can be written there."""
    check_url(url)
    if _scheme(url) in ("http", "https"):
        raise InputError(f"nothing can be written to {shown(url)}: give a folder, or a URL such as s3://")


def check_folder(url: str) -> None:
    """InputError, as check_writable, or where the URL has a query or lies in memory: no folder that lasts."""
    check_writable(url)
    if _scheme(url) == "memory":
        raise InputError(f"{shown(url)} lies in the memory of one process: give a folder, or a URL such as s3://")
    if _scheme(url) not in (None, "file") and re.search(r"[?#]", url):
        raise InputError(
            f"the folder {shown(url)} has a query ('?') or a fragment ('#') behind it: give the plain URL, and secrets "
            "to the client library by its environment variables or its credentials file"
        )


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
        try:
            return path.exists()
        except OSError as exc:
            raise _fault(url, exc) from exc
    try:
        # Not fs.exists: over HTTP that takes a server in trouble for one that has no such file.
        _retried(url, lambda call, remote: call("info", remote))
    except Missing:
        return False
    return True


def names_in(url: str) -> list[str]:
    """Names of the files and folders directly in the folder `url`, sorted; none where there is no such folder.

    Asked anew each time. StorageFault where the storage does not answer: silence is no empty folder.
    """
    path = local_path(url)
    if path is not None:
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise _fault(url, exc) from exc
    try:
        found = _retried(url, lambda call, remote: (remote, call("ls", remote, detail=False)))
    except Missing:
        return []
    finally:
        _file_system(url)[0].invalidate_cache()  # or what others do there in the meantime is not seen
    remote = found[0].rstrip("/")
    others = (place.rstrip("/") for place in found[1])  # a folder's own marker may be among them
    return sorted({place.rpartition("/")[2] for place in others if place != remote})


def size_bytes(url: str) -> int:
    """Bytes of the file at `url`. StorageFault where it is missing or of unknown size."""
    path = local_path(url)
    if path is not None:
        try:
            return path.stat().st_size
        except OSError as exc:
            raise _fault(url, exc) from exc
    size = _retried(url, lambda call, remote: call("info", remote)["size"])
    if size is None:
        raise StorageFault(f"the server of {shown(url)} does not say how long the file is: copy it to other storage")
    return int(size)


def version(url: str) -> str:
    """What changes when the file at `url` does, as far as the storage tells: size, time, entity tag.

    StorageFault where it is missing.
    """
    path = local_path(url)
    if path is None:
        info = _retried(url, lambda call, remote: call("info", remote))
        return repr([str(info.get(key)) for key in ("size", "ETag", "etag", "mtime", "LastModified", "Last-Modified")])
    try:
        stat = path.stat()
    except OSError as exc:
        raise _fault(url, exc) from exc
    return repr([stat.st_size, stat.st_mtime_ns, stat.st_ino])


def remove(url: str) -> None:
    """Take the file at `url` away; one that is not there is no error. StorageFault where that fails."""
    path = local_path(url)
    try:
        if path is not None:
            path.unlink(missing_ok=True)
        else:
            _retried(url, lambda call, remote: call("rm_file", remote))
    except Missing:
        pass
    except OSError as exc:
        raise _fault(url, exc) from exc


def open_read(url: str) -> io.BufferedReader:
    """A stream over the whole file; remote files are fetched in blocks, each with retries. StorageFault if missing."""
    path = local_path(url)
    if path is None:
        return io.BufferedReader(_RangeStream(url, size_bytes(url)), STREAM_BLOCK_BYTES)
    try:
        return path.open("rb")
    except OSError as exc:
        raise _fault(url, exc) from exc


def read_all(url: str, check: Callable[[bytes], object] | None = None) -> bytes:
    """The whole file. StorageFault where it is missing or does not come whole after the retries.

    `check` as in read_range.
    """
    path = local_path(url)
    if path is not None:
        try:
            return path.read_bytes()
        except OSError as exc:
            raise _fault(url, exc) from exc
    size = _retried(url, lambda call, remote: call("info", remote).get("size"))

    def ask(call: "Call", remote: str) -> bytes:
        data = cast(bytes, call("cat_file", remote))
        if size is not None and len(data) != size:  # an answer that does not say its length may end anywhere
            raise StorageFault(f"{shown(url)} came with {len(data)} of its {size} bytes: it is changed or badly served")
        if check is not None:
            check(data)
        return data

    return _retried(url, ask, size or 0)


def read_range(url: str, start: int, length: int, check: Callable[[bytes], object] | None = None) -> bytes:
    """Exactly `length` bytes from byte `start`. StorageFault where the file is missing or gives fewer (or more).

    `check` raises StorageFault for bytes that are not the right ones: a remote file is then asked again.
    """
    path = local_path(url)
    if path is None:

        def ask(call: "Call", remote: str) -> bytes:
            data = _whole(url, call("cat_file", remote, start=start, end=start + length), start, length)
            if check is not None:
                check(data)
            return data

        return _retried(url, ask, length)
    try:
        with path.open("rb") as file:
            file.seek(start)
            return _whole(url, file.read(length), start, length)
    except OSError as exc:
        raise _fault(url, exc) from exc


def download(url: str, size: int, write: Callable[[bytes], object]) -> None:
    """Hand all `size` bytes of the remote file at `url` to `write`, in order and in blocks, each with its retries.

    A server that does not know ranges sends the whole file at once, for which it has the time of one block: with the
    time of them all, a server that hangs would hold a run for an hour. StorageFault where the bytes do not come.
    """
    at = 0
    while at < size:
        length = min(STREAM_BLOCK_BYTES, size - at)
        block = _retried(url, partial(_block, url, at, length, size), length)
        write(block)
        at += len(block)


def _block(url: str, start: int, length: int, size: int, call: "Call", remote: str) -> bytes:
    """`length` bytes from `start`; or, of a server that sends all of its `size` bytes, the rest."""
    data = call("cat_file", remote, start=start, end=start + length)
    return data[start:] if len(data) == size > length else _whole(url, data, start, length)


def write_atomic(url: str, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file that appears whole or not at all; folders on the way are made.

    `data` is the bytes, or a function that appends them to the file it is given. When that function raises, nothing
    appears and its error goes on. Locally: a hidden `.tmp` file in the same folder, fsync, rename; what a function
    writes there goes past the page cache. Elsewhere: a local temporary file, then one upload. InputError where the
    place may not be written, StorageFault where the storage fails.
    """
    path = local_path(url)
    try:
        if path is not None:
            local.write(path, data)
        else:
            _write_remote(url, data)
    except OSError as exc:
        raise _unwritten(url, exc) from exc


def create(url: str, data: bytes) -> bool:
    """Write a file that is not there yet, whole; False where there is one, which stays as it is.

    Of two writers at once one is told False, if the storage has conditional writes, as local disks, s3 and gs do;
    elsewhere both may be told True. One whose answer was lost may be told False of its own file. Errors as
    write_atomic.
    """
    path = local_path(url)
    if path is not None:
        try:
            return local.create(path, data)
        except OSError as exc:
            raise _unwritten(url, exc) from exc
    if _scheme(url) not in CONDITIONAL:
        if exists(url):
            return False
        write_atomic(url, data)
        return True
    try:
        _retried(url, lambda call, remote: call("pipe_file", remote, data, mode="create"), len(data))
    except Present:
        return False
    return True


def remove_leftovers(url: str) -> None:
    """Take away what writers of this local file left behind when they were killed. Only where nobody writes it now."""
    path = local_path(url)
    if path is not None:
        local.remove_leftovers(path)


def _write_remote(url: str, data: bytes | Callable[[BinaryIO], None]) -> None:
    # Never write into an open remote file: fsspec uploads what it has when the writer fails half way.
    with tempfile.NamedTemporaryFile(suffix=".tmp") as file:
        _fill(cast(BinaryIO, file), data)
        file.flush()
        size = os.fstat(file.fileno()).st_size
        _retried(url, lambda call, remote: call("put_file", file.name, remote), size)


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


Call = Callable[..., Any]  # (name of a method of the file system, its arguments) -> what it returns


class Missing(StorageFault):
    """The storage answered, and there is no such file."""


class Present(StorageFault):
    """The storage answered, and there is such a file already."""


class NoRanges(StorageFault):
    """The server sends whole files where a part was asked for."""


def _retried(url: str, act: Callable[[Call, str], T], length: int = 0) -> T:
    """act(call, path), tried again after each of RETRY_DELAYS_S unless the error is there to stay.

    A call that moves up to `length` bytes has REQUEST_S and what they take at the slowest rate.
    """
    limit_s = REQUEST_S + length / SLOWEST_BYTES_PER_S
    begin_s = time.monotonic()
    for number, delay_s in enumerate((*RETRY_DELAYS_S, None), start=1):
        try:
            fs, remote = _file_system(url)
            return act(partial(_call, fs, limit_s), remote)
        except InputError:
            raise
        except Exception as exc:
            cause = _cause(exc)
            if delay_s is None or _lasting(cause):
                tries = f"{number} {'try' if number == 1 else 'tries'} in {time.monotonic() - begin_s:.1f} s"
                # An error of a client library may repeat the whole URL: kept out where the URL holds a secret.
                told = exc if shown(url) == url else None
                raise _fault(url, cause, f", {tries} on {socket.gethostname()}") from told
            pause_s = delay_s * random.SystemRandom().uniform(0.5, 1.5)  # so that ranks do not come back in step
            logging.getLogger("shards").warning(
                "%s on %s: %s after %.1f s, try %d of %d, again in %.1f s",
                shown(url),
                socket.gethostname(),
                cause if isinstance(cause, StorageFault) else _what(cause),
                time.monotonic() - begin_s,
                number,
                len(RETRY_DELAYS_S) + 1,
                pause_s,
            )
        time.sleep(pause_s)
    raise AssertionError("unreachable")


def _call(fs: Any, limit_s: float, method: str, *args: Any, **named: Any) -> Any:
    """fs.method(...); where the file system is an asynchronous one (http, s3, gs, az), within `limit_s`."""
    if not getattr(fs, "async_impl", False):
        return getattr(fs, method)(*args, **named)
    from fsspec.asyn import sync

    return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=limit_s, **named)


def _cause(exc: Exception) -> Exception:
    """The error itself: fsspec's HTTP says FileNotFoundError of any answer, and of none."""
    inner = exc.__cause__
    if not isinstance(exc, FileNotFoundError) or not isinstance(inner, Exception):
        return exc
    return inner if isinstance(inner, OSError) or type(inner).__module__.startswith(("aiohttp", "asyncio")) else exc


def _file_system(url: str) -> tuple[Any, str]:
    """(file system, path in it) of a remote URL."""
    try:
        fs = _client(os.getpid(), f"{_scheme(url)}://{urlsplit(url).netloc}")
    except ImportError as exc:
        raise InputError(
            f"reading {_scheme(url)}:// needs a package that is not installed ({exc}): install it, e.g. with the "
            "extra dist-alexnet[http], dist-alexnet[s3] or dist-alexnet[gcs]"
        ) from exc
    return fs, fs._strip_protocol(url)


@lru_cache(maxsize=16)
def _client(pid: int, root: str) -> Any:
    """The file system of a server or bucket; kept, because fsspec makes a new one, with new connections, a thread."""
    from fsspec.core import url_to_fs  # only remote places pay for this import

    # A server that packs what it sends would make offsets and lengths meaningless.
    plain = {"headers": {"Accept-Encoding": "identity"}} if root.startswith("http") else {}
    return url_to_fs(root, **plain)[0]


def _lasting(exc: Exception) -> bool:
    """Whether another try would end the same."""
    status = getattr(exc, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    kinds = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, TypeError)
    return isinstance(exc, (*kinds, NoRanges)) or type(exc).__name__ in NO_CREDENTIALS


def _whole(url: str, data: bytes, start: int, length: int) -> bytes:
    if len(data) > length:
        raise NoRanges(
            f"the server of {shown(url)} gave {len(data)} bytes where {length} from byte {start} were asked for, as "
            "one that does not serve ranges: set data.cache.dir, for which whole files will do, or use other storage"
        )
    if len(data) != length:
        raise StorageFault(
            f"{shown(url)} gave {len(data)} bytes from byte {start} where {length} were asked for: "
            "the file is cut, changed or badly served"
        )
    return data


def _fault(url: str, exc: Exception, tries: str = "") -> StorageFault:
    if isinstance(exc, StorageFault):
        return exc
    if isinstance(exc, FileExistsError):
        return Present(f"{shown(url)} is there already: it is not written over")
    if isinstance(exc, FileNotFoundError) or getattr(exc, "status", None) in (404, 410):
        return Missing(f"{shown(url)} is missing: check the path, or bring the file back")
    what = f"{_what(exc)}{tries}"
    return StorageFault(f"{shown(url)} could not be read or written ({what}): check the storage, then start again")


def _unwritten(url: str, exc: OSError) -> InputError | StorageFault:
    kind = InputError if exc.errno in USERS_MISTAKES else StorageFault
    return kind(f"cannot write {shown(url)}: {exc.strerror or type(exc).__name__}")


def _what(exc: Exception) -> str:
    """An error in a word: never its own text, which may repeat a URL with a secret."""
    status = getattr(exc, "status", None)
    if isinstance(status, int):
        return f"status {status}"
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if type(exc).__name__ in NO_CREDENTIALS:
        return "no credentials were found in the environment nor in the client library's files"
    return getattr(exc, "strerror", None) or type(exc).__name__


def _scheme(url: str) -> str | None:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):", url)
    return match.group(1) if match else None
