"""Which classes are taken for which: counts, the most confused pairs, and the matrix drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.pictures.canvas import BLUE, INK, new_figure, page_ink, plain, png_of, svg_of, write_text
from shards import local

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 100  # of a matrix; of more nothing could be seen
WITH_NAMES = 40  # classes of a matrix whose rows and columns have their names written beside them
WITH_COUNTS = 12  # classes of a matrix whose cells have their counts written in


@dataclass(frozen=True)
class Confused:
    """A class that was taken for another one."""

    true: int
    taken_for: int
    images: int
    of: int  # all images of the true class


def confusion(true_N: NDArray[np.int64], likeliest_N: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts, (true class, most likely class)."""
    return np.bincount(true_N * classes + likeliest_N, minlength=classes**2).reshape(classes, classes)


def most_confused(counts_CC: NDArray[np.int64], most: int = 20) -> list[Confused]:
    """The pairs with the most wrong images, falling; by class where they have as many."""
    wrong_CC = counts_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(wrong_CC)) for place in order]
    return [Confused(a, b, int(wrong_CC[a, b]), int(counts_CC[a].sum())) for a, b in pairs if wrong_CC[a, b]]


def draw_confusion(counts_CC: NDArray[np.int64], names: Sequence[str], to: Path) -> None:
    """Write the matrix of up to MOST_CLASSES classes as a PNG. The file appears whole. Raises OSError."""
    local.write(to, png_of(_matrix(counts_CC, names, INK)))


def confusion_svg(counts_CC: NDArray[np.int64], names: Sequence[str]) -> str:
    """The same as an <svg> element for a page."""
    return svg_of(_matrix(counts_CC, names, page_ink()))


def _matrix(counts_CC: NDArray[np.int64], names: Sequence[str], ink: str) -> "Figure":
    """Rows: the true class. A cell is the darker, the larger its part of the row."""
    classes = len(counts_CC)
    part_CC = counts_CC / np.maximum(1, counts_CC.sum(1, keepdims=True))
    red, green, blue = (int(BLUE[place : place + 2], 16) / 255 for place in (1, 3, 5))
    colours = np.broadcast_to([red, green, blue, 0.0], (classes, classes, 4)).copy()
    colours[:, :, 3] = 0.85 * np.sqrt(part_CC)  # so that a few per cent can be seen
    side = 4.2 if classes <= WITH_COUNTS else 7.0
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(colours, interpolation="nearest")
    labels = [plain(name, 14) for name in names] if classes <= WITH_NAMES else []
    axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels), default=0) > 2 else 0)
    axes.set_yticks(range(len(labels)), labels)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)
    axes.tick_params(length=0, labelsize=9 if classes <= 20 else 6, colors=ink)
    axes.set_xlabel("taken for", color=ink, fontsize=9)
    axes.set_ylabel("true class", color=ink, fontsize=9)
    for spine in axes.spines.values():
        spine.set_color(ink)
        spine.set_linewidth(0.5)
    if classes <= WITH_COUNTS:
        for (row, column), count in np.ndenumerate(counts_CC):
            if count:
                write_text(axes, column, row, str(count), ha="center", va="center", fontsize=8, color=ink)
    return figure
