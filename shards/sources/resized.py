"""Another source's pictures, made smaller."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

from shards.errors import InputError
from shards.sources.picture import JPEG_QUALITY, LIBRARY, resized
from shards.sources.source import ClassInfo, Source, SourceSample, class_info_of


@dataclass(frozen=True)
class ResizedSource:
    """`source` with the shorter side of every picture `side` pixels long, its centre square with `square`; as RGB JPEG.

    InputError for a side or quality that makes no picture.
    """

    source: Source
    side: int
    square: bool = False
    quality: int = JPEG_QUALITY

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 65500:
            raise InputError(f"pictures of {self.side} pixels cannot be made: give a size from 1 to 65500, such as 256")
        if not 1 <= self.quality <= 100:
            raise InputError(f"the JPEG quality is {self.quality}: expected 1 to 100, such as {JPEG_QUALITY}")

    @property
    def recipe(self) -> str:
        """Size, quality and library: another version of the library may give other bytes."""
        shape = "centre square" if self.square else "shorter side"
        return f"{self.source.recipe}; {shape} {self.side} px, area or bicubic, jpeg {self.quality} ({LIBRARY})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The other source's."""
        return self.source.classes

    @property
    def class_info(self) -> ClassInfo | None:
        """The other source's."""
        return class_info_of(self.source)

    def samples(self, split: str) -> Sequence[SourceSample]:
        """The other source's, under the same keys."""
        return _Resized(self.source.samples(split), self)


@dataclass(frozen=True, eq=False)
class _Resized(Sequence[SourceSample]):
    samples: Sequence[SourceSample]
    how: ResizedSource

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, at: int) -> SourceSample: ...
    @overload
    def __getitem__(self, at: slice) -> "_Resized": ...
    def __getitem__(self, at: int | slice) -> "SourceSample | _Resized":
        if isinstance(at, slice):
            return _Resized(self.samples[at], self.how)
        sample = self.samples[at]
        load = partial(_load, sample.load, self.how.side, self.how.square, self.how.quality, sample.key)
        return SourceSample(sample.key, sample.label, load, sample.size_bytes)


def _load(load: Callable[[], bytes], side: int, square: bool, quality: int, key: str) -> bytes:
    return resized(load(), side, square, quality, repr(key))
