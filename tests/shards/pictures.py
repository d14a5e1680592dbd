"""Small pictures and tars for the tests of this room."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources.source import SourceSample


def jpeg(seed: int, side: int = 12) -> bytes:
    """JPEG bytes of noise: another seed, another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class NoiseSource:
    """`count` noise pictures of 3 classes; `fail_at` is the sample whose load raises."""

    recipe = "noise"
    classes = ("ant", "bee", "cat")

    def __init__(self, count: int, fail_at: int | None = None, keys: Iterable[str] | None = None) -> None:
        self.count, self.fail_at = count, fail_at
        self.keys = list(keys) if keys is not None else [f"noise-{i:03d}" for i in range(count)]
        self.loads = 0

    def samples(self, split: str) -> list[SourceSample]:
        return [SourceSample(key, i % 3, self._loader(i)) for i, key in enumerate(self.keys)]

    def _loader(self, i: int):  # noqa: ANN202
        def load() -> bytes:
            self.loads += 1
            if i == self.fail_at:
                raise RuntimeError("killed here")
            return jpeg(i)

        return load


def members(count: int, first: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` good samples as (member name, bytes)."""
    for i in range(first, first + count):
        yield f"s{i:04d}.jpg", jpeg(i)
        yield f"s{i:04d}.cls", str(i % 5).encode()


def write_tar(
    path: Path, content: Iterable[tuple[str | tarfile.TarInfo, bytes]], tar_format: int = tarfile.PAX_FORMAT
) -> Path:
    """A tar of (name or header, bytes)."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in content:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A header of a link, device or the like."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
