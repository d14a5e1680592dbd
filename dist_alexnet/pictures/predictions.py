"""Pictures with the classes that a network finds most likely, as in Figure 4 (left) of the paper of 2012."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.pictures.canvas import BLUE, INK, ORANGE, Pixels, cell, new_figure, percent, plain, png_of, title
from dist_alexnet.pictures.canvas import picture as show
from dist_alexnet.pictures.canvas import write_text as write
from shards import local

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 4
LIKELIEST = 5


def class_name(names: Sequence[str] | None, number: int) -> str:
    """Its name, or its number where no name is known."""
    return f"class {number}" if names is None or number >= len(names) else names[number]


def likeliest_classes(logits_BC: NDArray[np.float32], count: int = LIKELIEST) -> list[list[tuple[int, float]]]:
    """Of each image the most likely classes and their probabilities, falling; ties fall to the lower class.

    logits_BC: (images, classes).
    """
    wide_BC = logits_BC.astype(np.float64)
    exp_BC = np.exp(wide_BC - wide_BC.max(1, keepdims=True))
    probability_BC = exp_BC / exp_BC.sum(1, keepdims=True)
    order_Bk = np.argsort(-logits_BC, axis=1, kind="stable")[:, :count]
    return [
        [(int(number), float(probability_C[number])) for number in order_k]
        for order_k, probability_C in zip(order_Bk, probability_BC, strict=True)
    ]


def draw_predictions(
    images: Sequence[Pixels],
    names: Sequence[str],
    likeliest: Sequence[Sequence[tuple[str, float]]],
    true: Sequence[str | None],
    to: Path,
) -> None:
    """Write a PNG: each picture under its name, and below it its most likely classes with probabilities as bars.

    images: uint8 (H, W, 3), of any sizes; at least one. names: what stands above each, such as its file.
    likeliest: (class, probability), most likely first. true: the right class, where it is known: its bar is blue, the
    others' are orange. The file appears whole. Raises OSError.
    """
    across, most = min(ACROSS, len(images)), max(len(one) for one in likeliest)
    width, lines, side, gap = 2.3, 0.4, 1.9, 0.1  # inches: of a picture's place, its words, the picture, between them
    bars = 0.23 * most
    height = lines + side + bars + 3 * gap
    figure = new_figure(across * (width + gap) + gap, -(-len(images) // across) * height, layout=None)
    for number, image in enumerate(images):
        left, top = gap + number % across * (width + gap), number // across * height + gap + lines
        right = true[number]
        axes = cell(figure, left, top, width, side)
        show(axes, image)
        title(axes, plain(names[number], 30) + ("" if right is None else f"\n{plain(right, 30)}"), fontsize=8)
        _bars(cell(figure, left, top + side + gap, width, bars), likeliest[number], right, most)
    local.write(to, png_of(figure))


def _bars(axes: "Axes", likeliest: Sequence[tuple[str, float]], right: str | None, most: int) -> None:
    """One bar a class, 0 to 1, its name inside and its probability at the end."""
    axes.set(xlim=(0, 1), ylim=(most - 0.5, -0.5))
    for place, (name, probability) in enumerate(likeliest):
        colour = BLUE if right is None or name == right else ORANGE
        axes.barh(place, probability, height=0.8, color=colour, alpha=0.45, linewidth=0)
        write(axes, 0.02, place, plain(name, 24), va="center", fontsize=8, color=INK)
        write(axes, 0.99, place, percent(probability), va="center", ha="right", fontsize=7, color=INK)
