"""Pictures of a batch as the network sees them: cut, mirrored, with colour noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.pictures.canvas import DOTS_PER_INCH, Pixels, cell, mosaic, new_figure, picture, png_of, title
from shards import local

ACROSS = 8


def shown_inputs(inputs_b3SS: NDArray[np.float32], mean_3SS: NDArray[np.float32]) -> list[Pixels]:
    """A network's inputs as pictures again: plus the mean, which every input has lost, and rounded to 0-255.

    Crop, mirror and colour noise stay in them. Division by the noise's or the network's deviation is part of what is
    seen: a picture that was divided looks paler. inputs_b3SS: (images, R G B, S, S).
    """
    level = np.rint(inputs_b3SS + mean_3SS).clip(0, 255).astype(np.uint8)
    return list(level.transpose(0, 2, 3, 1))


def draw_batch(images: Sequence[Pixels], step: int, to: Path) -> None:
    """Write a PNG of pictures of one size side by side. The file appears whole. Raises OSError."""
    whole = batch_mosaic(images)
    height, width = whole.shape[:2]
    width_in, height_in = width / DOTS_PER_INCH, height / DOTS_PER_INCH  # pixel for pixel
    figure = new_figure(max(5.5, width_in + 0.2), height_in + 0.4, layout=None)
    axes = cell(figure, 0.1, 0.3, width_in, height_in)
    picture(axes, whole)
    title(axes, f"step {step}: the first {len(images)} pictures of the batch, as the network sees them")
    local.write(to, png_of(figure))


def batch_mosaic(images: Sequence[Pixels]) -> NDArray[np.uint8]:
    """The pictures in rows of ACROSS, R G B A."""
    return mosaic(images, min(ACROSS, len(images)), gap=2)
