"""Which part of a picture the network sees, and whether mirrored: pure functions of the position.

A picture is thought with its short side at `resize` pixels and its centre square kept (paper, section 2). The crop of
`image_size` pixels stands at an offset of 0 .. resize - image_size in each direction (33 x 33 places for 256 and 224;
as the code of 2012 does; the paper counts 32 x 32).
"""

from dataclasses import dataclass

import numpy as np

from dist_alexnet.config import Data
from shards.hashing import below, hash64


@dataclass(frozen=True)
class Views:
    """Of a list of images: crop offsets in pixels at `resize`, and mirror flags."""

    left: np.ndarray  # int64 (images,)
    top: np.ndarray  # int64 (images,)
    mirror: np.ndarray  # bool (images,)


def training_views(positions: np.ndarray, seed: int, data: Data) -> Views:
    """The views of training positions (int64, (images,))."""
    centre = centre_views(len(positions), data)
    if not data.augment.crop:
        left, top = centre.left, centre.top
    else:
        places = data.resize - data.image_size + 1
        left = below(hash64(seed, "view/left", positions), places)
        top = below(hash64(seed, "view/top", positions), places)
    mirror = below(hash64(seed, "view/mirror", positions), 2) == 1 if data.augment.mirror else centre.mirror
    return Views(left, top, mirror)


def centre_views(images: int, data: Data) -> Views:
    """The views of evaluation: the centre, not mirrored."""
    offset = np.full(images, (data.resize - data.image_size) // 2, dtype=np.int64)
    return Views(offset, offset, np.zeros(images, dtype=bool))
