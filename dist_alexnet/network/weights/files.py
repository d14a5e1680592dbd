"""Files that appear whole or not at all, and never in the place of others; libraries that may be missing."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_alexnet.errors import WeightsError
from shards.errors import StorageFault


def check_free(path: Path) -> None:
    """Raise WeightsError unless something new can be made at `path`: before the long work, and again after it."""
    if path.exists() or path.is_symlink():
        raise WeightsError(f"{path} is there already and is not overwritten: choose another name, or remove it")
    if not path.absolute().parent.is_dir():
        raise WeightsError(f"{path} cannot be written, its folder is missing: make {path.parent} first")


def check_file(path: Path) -> None:
    """Raise WeightsError unless `path` is a file."""
    if not path.is_file():
        raise WeightsError(f"{path} is {'a folder' if path.is_dir() else 'missing'}, expected a file with weights")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A free name beside `path`, for a file or a folder; it becomes `path` when the block ends well, and is removed
    when it does not. Raises WeightsError where `path` is taken, StorageFault where it cannot be written.
    """
    check_free(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if partial.is_file():
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        check_free(path)
        partial.rename(path)
        _make_durable(path.absolute().parent)
    except OSError as error:
        raise StorageFault(f"{path} cannot be written: {error}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _make_durable(folder: Path) -> None:
    """The names in a folder survive a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing_extra(library: str) -> WeightsError:
    """What to say where an optional library cannot be imported."""
    return WeightsError(f"{library} is not installed, expected for this format: pip install 'dist-alexnet[weights]'")
