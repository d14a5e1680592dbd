"""One pass over a set: its mean picture, and mean and covariance of its colours.

Only whole numbers are added up, so neither the number of workers nor their order changes a bit of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.data.crop import square_box
from dist_alexnet.data.decode import DecodeFault, decode_crop, decoder_identity
from dist_alexnet.data.statistics import Statistics, Triple
from shards.errors import InputError
from shards.index import ShardIndex
from shards.processes import each_done
from shards.reader import ShardReader

Progress = Callable[[int, int], None]  # pictures done, of all


@dataclass(frozen=True)
class Sums:
    """Over the centre squares of pictures, at `resize` pixels: exact."""

    images: int  # decoded
    undecoded: int
    pixels: NDArray[np.int64]  # (3, resize, resize): sum over pictures
    products: NDArray[np.int64]  # (3, 3): sum over pictures and pixels of colour times colour

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.images + other.images,
            self.undecoded + other.undecoded,
            self.pixels + other.pixels,
            self.products + other.products,
        )


def measure(
    index: ShardIndex, resize: int, workers: int, progress: Progress | None = None
) -> tuple[dict[str, Any], Statistics]:
    """(facts, statistics) of a set: every picture's centre square at `resize` pixels. Reads the whole set once.

    workers: processes. facts: of which data and how, as plain values. A picture that does not decode is left out and
    counted. Raises StorageFault, and InputError where no picture decodes.
    """
    total = Sums(0, 0, np.zeros((3, resize, resize), np.int64), np.zeros((3, 3), np.int64))
    shards = (index.select([row.name]) for row in index.shards)  # a shard is a process's piece of work
    for sums in each_done(partial(sums_of, resize=resize), shards, workers):
        total += sums
        if progress is not None:
            progress(total.images + total.undecoded, len(index))
    if not total.images:
        raise InputError(f"none of the {len(index)} pictures of {index.split} decodes: there are no statistics of them")
    covariance = _covariance(total)
    values, vectors = _axes(covariance)
    facts = {
        "digest": index.digest,
        "decoder": decoder_identity(),
        "resize": resize,
        "images": total.images,
        "undecoded": total.undecoded,
        "covariance": covariance.tolist(),
        "eigenvalues": values.tolist(),
    }
    pixels = total.images * resize * resize
    mean = _three([int(total.pixels[colour].sum()) / pixels for colour in range(3)])
    deviations = _three(np.sqrt(values).tolist())
    rows = vectors.tolist()
    axes = (_three(rows[0]), _three(rows[1]), _three(rows[2]))
    return facts, Statistics(mean, deviations, axes, (total.pixels / total.images).astype(np.float32))


def sums_of(index: ShardIndex, resize: int) -> Sums:
    """The sums over an index, in this process. Raises StorageFault."""
    reader, box_of = ShardReader(index), partial(square_box, left=0, top=0, resize=resize, image_size=resize)
    pixels, products, decoded = np.zeros((3, resize, resize), np.int64), np.zeros((3, 3), np.int64), 0
    for sample_id in range(len(index)):
        (sample,) = reader.read([sample_id])
        try:
            square = decode_crop(sample.jpeg, box_of, resize)
        except DecodeFault:  # of the picture: bytes that rotted would have been a fault of the reader's
            continue
        decoded += 1
        pixels += square
        # Products of whole numbers, below 2**53 in all: exact in float64, whose loops are fast. No BLAS, which would
        # start threads in each process.
        flat = square.reshape(3, -1).astype(np.float64)
        products += np.einsum("ip,jp->ij", flat, flat).astype(np.int64)
    return Sums(decoded, len(index) - decoded, pixels, products)


def _covariance(sums: Sums) -> NDArray[np.float64]:
    """(3, 3) of R, G, B over all pixels, rounded once."""
    pixels = sums.images * sums.pixels[0].size
    colour = [int(plane.sum()) for plane in sums.pixels]
    exact = [
        [Fraction(pixels * int(sums.products[i, j]) - colour[i] * colour[j], pixels**2) for j in range(3)]
        for i in range(3)
    ]
    return np.array([[float(value) for value in row] for row in exact])


def _axes(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(eigenvalues rising, eigenvectors as rows); the largest component of a vector is positive."""
    values, columns = np.linalg.eigh(covariance)
    rows = columns.T
    signs = np.sign(rows[np.arange(3), np.abs(rows).argmax(1)])
    return np.maximum(values, 0), rows * signs[:, None]  # of a grey set, two are 0 and may come out below


def _three(values: list[float]) -> Triple:
    one, two, three = values
    return one, two, three
