"""What the network sees of a picture: crop, mirror, colour noise. Pure functions of (seed, position, picture's size).

A picture is thought with its short side at `resize` pixels and its centre square kept (paper, section 2). The crop of
`image_size` pixels stands at an offset of 0 .. resize - image_size in each direction (33 x 33 places for 256 and 224;
as the code of 2012 does; the paper counts 32 x 32). A random resized crop is cut from the whole stored picture.
"""

from dataclasses import dataclass

import numpy as np

from dist_alexnet.config import Data
from dist_alexnet.data.colour import ColourNoise
from dist_alexnet.data.crop import NUMBERS_A_TRY, TRIES, Box, resized_box, square_box
from shards.hashing import below, hash64, unit_interval


@dataclass(frozen=True)
class Views:
    """Of a list of images: all that does not depend on a picture's size, and `box` for what does."""

    data: Data
    left: np.ndarray  # int64 (images,): offset of the crop at `resize`; not used by a random resized crop
    top: np.ndarray  # int64 (images,)
    mirror: np.ndarray  # bool (images,)
    noise: np.ndarray  # fp32 (images, 3): added to R, G, B of 0-255
    divisor: np.ndarray  # fp32 (images,): of the picture, mean and noise taken into account
    tries: np.ndarray | None  # float64 (images, TRIES, NUMBERS_A_TRY) in [0, 1): of a random resized crop

    def box(self, slot: int, width: int, height: int) -> Box:
        """Where to cut the stored picture of image `slot`, once its size is known."""
        data = self.data
        if self.tries is not None:
            return resized_box(width, height, self.tries[slot], data.augment.resized_scale, data.augment.resized_ratio)
        return square_box(width, height, int(self.left[slot]), int(self.top[slot]), data.resize, data.image_size)


def training_views(positions: np.ndarray, seed: int, data: Data, noise: ColourNoise | None) -> Views:
    """The views of training positions (int64, (images,))."""
    plain, augment = centre_views(len(positions), data), data.augment
    shared = positions // augment.crop_chunk
    left, top, mirror, tries = plain.left, plain.top, plain.mirror, None
    if augment.crop == "random":
        places = data.resize - data.image_size + 1
        left = below(hash64(seed, "view/left", shared), places)
        top = below(hash64(seed, "view/top", shared), places)
    elif augment.crop == "resized":
        words = hash64(seed, "view/resized", shared[:, None], np.arange(TRIES * NUMBERS_A_TRY))
        tries = (unit_interval(words) / 2**53).reshape(-1, TRIES, NUMBERS_A_TRY)
    if augment.mirror:
        mirror = below(hash64(seed, "view/mirror", shared), 2) == 1
    added, divisor = (plain.noise, plain.divisor) if noise is None else noise.at(positions, seed)
    return Views(data, left, top, mirror, added, divisor, tries)


def centre_views(images: int, data: Data) -> Views:
    """The views of evaluation: the centre, not mirrored, no noise."""
    offset = np.full(images, (data.resize - data.image_size) // 2, dtype=np.int64)
    no_noise, divisor = np.zeros((images, 3), dtype=np.float32), np.ones(images, dtype=np.float32)
    return Views(data, offset, offset, np.zeros(images, dtype=bool), no_noise, divisor, None)


def ten_views(images: int, data: Data) -> Views:
    """Ten rows for each image: the corners of the `resize` square and its centre, then the mirrors of these five.

    As in 2012 (paper, section 4.1).
    """
    far, middle = data.resize - data.image_size, (data.resize - data.image_size) // 2
    left = np.tile(np.array([0, far, 0, far, middle], dtype=np.int64), 2 * images)
    top = np.tile(np.array([0, 0, far, far, middle], dtype=np.int64), 2 * images)
    mirror = np.tile(np.repeat([False, True], 5), images)
    no_noise, divisor = np.zeros((10 * images, 3), dtype=np.float32), np.ones(10 * images, dtype=np.float32)
    return Views(data, left, top, mirror, no_noise, divisor, None)


def evaluation_views(images: int, data: Data, views: int) -> Views:
    """`views` rows for each image, 1 or 10, an image's own next to each other."""
    return centre_views(images, data) if views == 1 else ten_views(images, data)
