"""Pictures whose features lie nearest to another's, as in Figure 4 (right) of the paper of 2012."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.pictures.canvas import Pixels, cell, new_figure, picture, plain, png_of, title
from shards import local

NEAREST = 6


@dataclass(frozen=True)
class Neighbours:
    """A picture and those nearest to it, each with the name of its class."""

    picture: Pixels
    name: str
    nearest: tuple[Pixels, ...]
    names: tuple[str, ...]
    distances: tuple[float, ...]  # Euclidean, of features


def nearest(
    asked_QD: NDArray[np.float32], known_ND: NDArray[np.float32], count: int = NEAREST
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(which_Qk, distance_Qk): the rows of `known_ND` nearest to each row of `asked_QD`, by Euclidean distance.

    Nearest first; of equally near ones the first row comes first. k: `count`, or all where there are fewer.
    """
    # Differences, and no product of the two: what is the same picture has distance 0 then, and not 1e-3.
    distance_QN = np.stack([np.linalg.norm((known_ND - one_D).astype(np.float64), axis=1) for one_D in asked_QD])
    which_Qk = np.argsort(distance_QN, axis=1, kind="stable")[:, :count]
    return which_Qk, np.take_along_axis(distance_QN, which_Qk, axis=1)


def draw_neighbours(rows: Sequence[Neighbours], to: Path) -> None:
    """Write a PNG: a row each, the picture and behind it its neighbours. The file appears whole. Raises OSError."""
    side, gap, line = 1.3, 0.1, 0.2  # inches
    across = 1 + max(len(row.nearest) for row in rows)
    figure = new_figure(across * (side + gap) + 2 * gap, len(rows) * (side + gap + line), layout=None)
    for number, row in enumerate(rows):
        top = line + number * (side + gap + line)
        asked = cell(figure, gap, top, side, side)
        picture(asked, row.picture)
        title(asked, plain(row.name, 18), fontsize=8, fontweight="bold")
        for place, (pixels, name) in enumerate(zip(row.nearest, row.names, strict=True), 1):
            axes = cell(figure, 2 * gap + place * (side + gap), top, side, side)
            picture(axes, pixels)
            title(axes, plain(name, 18), fontsize=8)
    local.write(to, png_of(figure))
