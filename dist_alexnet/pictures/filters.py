"""The first layer's filters by column, as in Figure 3 of the paper of 2012, and how far the columns have specialised.

There one GPU learned filters without colour and the other filters with it, in every run, whatever the initial values.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.pictures.canvas import (
    DOTS_PER_INCH,
    INK,
    Pixels,
    cell,
    mosaic,
    new_figure,
    percent,
    picture,
    png_of,
    title,
    write_text,
)
from shards import local

ACROSS = 16  # of 48 filters in three rows, as in Figure 3
COLOURED = 0.5  # a filter above it is said to be coloured
TILE_PIXELS = 44  # at least, of one filter's side in the PNG


@dataclass(frozen=True)
class Specialisation:
    """How much of the filters' energy is colour. Numbers of 0 (grey) to 1 (colour alone); initial values give 2/3."""

    colour_by_filter: tuple[float, ...]
    colour_by_column: tuple[float, ...]  # means
    coloured_by_column: tuple[float, ...]  # the part of the filters that is above COLOURED

    @property
    def difference(self) -> float | None:
        """Between the two columns' means: 0, they are alike; 1, one sees colour alone and the other none. None for one
        column.
        """
        if len(self.colour_by_column) == 1:
            return None
        return abs(self.colour_by_column[1] - self.colour_by_column[0])


def specialisation(filters_F3KK: NDArray[np.float32], columns: int) -> Specialisation:
    """Of the first layer's filters (filters, R G B, K, K), those of column 0 first.

    A filter's mean over its pixels and colours, which answers to plain brightness, is taken off. What then lies along
    (1, 1, 1) at each pixel is grey; colour is the rest, as part of the energy (sum of squares). A filter that is
    constant has no energy, and counts as grey.
    """
    wide = filters_F3KK.astype(np.float64)
    wide = wide - wide.mean((1, 2, 3), keepdims=True)
    energy_F = (wide**2).sum((1, 2, 3))
    grey_F = 3 * (wide.mean(1) ** 2).sum((1, 2))
    # Below what rounding leaves of a constant filter there is nothing to be judged.
    nothing_F = energy_F <= 1e-12 * (filters_F3KK.astype(np.float64) ** 2).sum((1, 2, 3))
    colour_F = np.where(nothing_F, 0.0, 1 - grey_F / np.where(nothing_F, 1.0, energy_F)).clip(0, 1)
    by_column = np.split(colour_F, columns)
    return Specialisation(
        tuple(colour_F.tolist()),
        tuple(float(part.mean()) for part in by_column),
        tuple(float((part > COLOURED).mean()) for part in by_column),
    )


def filter_tiles(filters_F3KK: NDArray[np.float32]) -> list[Pixels]:
    """Each filter as a picture of its own scale: 0 is the grey in the middle, its largest element black or white.

    On one scale for all, the few strong filters would be all there is to see.
    """
    largest = np.abs(filters_F3KK).max((1, 2, 3), keepdims=True)
    level = 127.5 * (1 + filters_F3KK / np.where(largest > 0, largest, 1))
    return list(np.rint(level).astype(np.uint8).transpose(0, 2, 3, 1))


def filter_mosaics(filters_F3KK: NDArray[np.float32], columns: int) -> list[NDArray[np.uint8]]:
    """One picture a column, R G B A, its filters in rows of ACROSS or less."""
    tiles = filter_tiles(filters_F3KK)
    each, scale = len(tiles) // columns, -(-TILE_PIXELS // filters_F3KK.shape[2])
    return [
        mosaic(tiles[column * each : (column + 1) * each], min(ACROSS, each), gap=scale, scale=scale)
        for column in range(columns)
    ]


def draw_filters(filters_F3KK: NDArray[np.float32], columns: int, to: Path) -> None:
    """Write a PNG: the columns' filters one below the other, and what `specialisation` says of them.

    filters_F3KK: (filters, R G B, K, K), column 0's first. The file appears whole. Raises OSError.
    """
    found, mosaics = specialisation(filters_F3KK, columns), filter_mosaics(filters_F3KK, columns)
    height_in, width_in = (size / DOTS_PER_INCH for size in mosaics[0].shape[:2])  # pixel for pixel
    figure = new_figure(max(5.5, width_in + 0.2), columns * (height_in + 0.4) + 0.3, layout=None)
    for column, pixels in enumerate(mosaics):
        axes = cell(figure, 0.1, 0.3 + column * (height_in + 0.4), width_in, height_in)
        picture(axes, pixels)
        title(axes, words_of(found, column))
    if found.difference is not None:
        foot = cell(figure, 0.1, columns * (height_in + 0.4), width_in, 0.2)
        write_text(foot, 0, 0, f"specialisation {found.difference:.2f}", fontsize=9, color=INK)
    local.write(to, png_of(figure))


def words_of(found: Specialisation, column: int) -> str:
    """What is said of one column's filters."""
    name = f"column {column}: " if len(found.colour_by_column) > 1 else ""
    mean, part = found.colour_by_column[column], found.coloured_by_column[column]
    return f"{name}colour {mean:.2f} of the energy, {percent(part, 0)} of the filters coloured"
