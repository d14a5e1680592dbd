"""What a source of pictures is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class SourceSample:
    """A labelled picture that has not been read yet.

    `key` is unique in its split and has neither dots nor slashes; `label` indexes the source's classes; `load` gives
    JPEG bytes (InputError where the picture cannot be read); `size_bytes` is the original file's, 0 where none is.
    """

    key: str
    label: int
    load: Callable[[], bytes]
    size_bytes: int = 0


class Source(Protocol):
    """Where pictures come from."""

    @property
    def recipe(self) -> str:
        """How the bytes come about, in a word or two: another recipe is another build."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""

    def samples(self, split: str) -> list[SourceSample]:
        """The samples of one split, in an order that is the same every time. InputError for a split it lacks."""
