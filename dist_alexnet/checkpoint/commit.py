"""COMMIT: the one mark that makes a folder of files a checkpoint, and what it vouches for."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dist_alexnet.checkpoint.contents import CONTENTS, FileRecord, check_file_name, read_contents
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.errors import CheckpointError
from shards import storage

COMMIT = "COMMIT"
VERSION = 2


@dataclass(frozen=True)
class Commit:
    """What COMMIT says. `state` is the trainer's: samples seen, counters, W&B id, config, identity."""

    step: int
    generation: int
    files: tuple[FileRecord, ...]
    layout: dict[str, Any]
    versions: dict[str, str]
    state: dict[str, Any]
    version: int = VERSION

    @property
    def digest(self) -> str:
        """sha256 of what it says, the checksums of all files among it: tells this checkpoint from any other."""
        return _digest(json.loads(json.dumps(asdict(self))))

    def to_json(self) -> bytes:
        """The file, with a digest of what it says: it vouches for the others, and nothing else does for it."""
        return json.dumps({**asdict(self), "sha256": self.digest}, indent=1).encode()


@dataclass(frozen=True)
class Found:
    """A committed checkpoint."""

    folder: Place
    commit: Commit


def read_commit(folder: Place) -> Commit:
    """What COMMIT in `folder` says. Raises CheckpointError, or StorageFault where it cannot be read just now."""
    place = folder / COMMIT
    try:
        values = json.loads(place.read())
        if values["version"] != VERSION:
            raise ValueError(f"its version is {values['version']!r}, expected {VERSION}")
        if values.pop("sha256") != _digest(values):
            raise ValueError("its sha256 is another than that of what it says: it was changed")
        files = tuple(FileRecord(**record) for record in values.pop("files"))
        for record in files:
            check_file_name(record.name)
        return Commit(files=files, **values)
    except storage.Missing as error:
        raise CheckpointError(f"{place} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error


def checked_commit(folder: Place) -> Commit:
    """COMMIT, if it vouches for every file that the table of contents needs. Errors as read_commit."""
    commit = read_commit(folder)
    places = read_contents(folder).storage_data or {}
    needed = {CONTENTS, *(place.relative_path for place in places.values())}
    missing = needed - {record.name for record in commit.files}
    if missing:
        raise CheckpointError(f"{folder / COMMIT} does not vouch for {min(missing)}: it was changed")
    return commit


def check_files(folder: Place, records: Iterable[FileRecord], by_size_only: bool = False) -> None:
    """Raise CheckpointError unless the files are as promised, StorageFault where one cannot be read just now."""
    for promised in records:
        place = folder / promised.name
        try:
            size = storage.size_bytes(place.url)
            same = size == promised.bytes and (by_size_only or _sha256(place) == promised.sha256)
        except storage.Missing as error:
            raise CheckpointError(f"{place} is missing") from error
        if size != promised.bytes:
            raise CheckpointError(f"{place} has {size} bytes, expected {promised.bytes}: it is torn or was changed")
        if not same:
            raise CheckpointError(f"{place} has another sha256 than COMMIT says: it was changed")


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(place: Place) -> str:
    with storage.open_read(place.url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
