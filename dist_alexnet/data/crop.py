"""Where in a stored picture a crop lies: arithmetic, without the picture.

A box is (left, top, right, bottom) in pixels of the stored picture, not always whole; right and bottom are outside.
"""

import math
from collections.abc import Callable

import numpy as np

Box = tuple[float, float, float, float]
BoxOf = Callable[[int, int], Box]  # (width, height) of the stored picture -> the box to cut from it

TRIES = 10  # of a random resized crop, before it falls back to the centre; as torchvision
NUMBERS_A_TRY = 4  # area, shape, top, left


def square_box(width: int, height: int, left: int, top: int, resize: int, image_size: int) -> Box:
    """The crop of `image_size` at (left, top) of the picture's centre square, thought at `resize` pixels."""
    short = min(width, height)
    scale = short / resize
    x = (width - short) // 2 + left * scale  # the centre square, on whole pixels
    y = (height - short) // 2 + top * scale
    side = image_size * scale
    return x, y, min(x + side, width), min(y + side, height)


def resized_box(
    width: int, height: int, tries: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A random resized crop: a part of the area in `scale`, width / height in `ratio` (uniform in its logarithm).

    tries: numbers in [0, 1), float64 (TRIES, NUMBERS_A_TRY). The first try that fits in the picture counts; if none
    does, the largest box of an allowed shape, in the centre.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for area, shape, down, right in tries.tolist():
        pixels = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * shape)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            y, x = int(down * (height - h + 1)), int(right * (width - w + 1))
            return x, y, x + w, y + h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h
