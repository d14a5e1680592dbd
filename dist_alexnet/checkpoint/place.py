"""A folder that checkpoints lie in, or one of them: on a disk, or at a URL of an object store."""

from dataclasses import dataclass
from pathlib import Path

from shards import storage


@dataclass(frozen=True)
class Place:
    """A folder, or a file in it. Printed, it shows no secret. Its methods raise the errors of shards/storage.py."""

    url: str

    @classmethod
    def at(cls, given: "str | Path | Place") -> "Place":
        """The place of a path or a URL. Raises InputError for what is neither."""
        if isinstance(given, Place):
            return given
        path = storage.local_path(str(given))
        return cls(str(given).rstrip("/") if path is None else str(path))

    def __truediv__(self, name: str) -> "Place":
        return Place(storage.join(self.url, name))

    def __str__(self) -> str:
        return storage.shown(self.url)

    @property
    def path(self) -> Path | None:
        """Where it is on a disk; None for a place elsewhere."""
        return storage.local_path(self.url)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2] if self.path is None else self.path.resolve().name

    @property
    def parent(self) -> "Place":
        return Place(storage.parent(self.url)[0])

    def absolute(self) -> "Place":
        """The same, wherever one stands."""
        return self if self.path is None else Place(str(self.path.resolve()))

    def holds(self, other: "Place") -> bool:
        """Whether `other` lies in this folder, or in a folder in it."""
        here, there = self.path, other.path
        if here is not None and there is not None:
            return here.resolve() in there.resolve().parents
        return other.url.startswith(f"{self.url}/")

    def names(self) -> list[str]:
        """Names of what lies in the folder; none where there is no such folder."""
        return storage.names_in(self.url)

    def exists(self) -> bool:
        return storage.exists(self.url)

    def read(self) -> bytes:
        return storage.read_all(self.url)

    def clear(self, first: str) -> None:
        """Take away the files of the folder, `first` before the others, and the folder itself if nothing is left."""
        for name in sorted(self.names(), key=lambda name: name != first):
            storage.remove((self / name).url)
        self.drop()

    def drop(self) -> None:
        """Take away the folder if it is empty; object stores have none."""
        if self.path is not None:
            try:
                self.path.rmdir()
            except OSError:  # not empty, or gone
                return
