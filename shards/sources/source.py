"""What a source of pictures is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ClassInfo = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class SourceSample:
    """A labelled picture that has not been read yet.

    `key` is unique in its split and has no dots, nor empty parts between slashes; `label` indexes the source's
    classes; `load` gives the picture's bytes (InputError where they cannot be had) and travels to another process
    where there are to be several; `size_bytes` is the original file's, 0 where none is.
    """

    key: str
    label: int
    load: Callable[[], bytes]
    size_bytes: int = 0


class Source(Protocol):
    """Where pictures come from.

    A source may also have `class_info`: a mapping of plain values a class (or None), for the index.
    """

    @property
    def recipe(self) -> str:
        """How the bytes come about, in a word or two: another recipe is another build."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""

    def samples(self, split: str) -> Sequence[SourceSample]:
        """The samples of one split, in an order that is the same every time. InputError for a split it lacks.

        A sequence that makes each sample when it is asked for (shards/sources/slices.py) keeps a million of them small.
        """


def class_info_of(source: Source) -> ClassInfo | None:
    """What the source knows of its classes beyond their names."""
    info: ClassInfo | None = getattr(source, "class_info", None)
    return info
