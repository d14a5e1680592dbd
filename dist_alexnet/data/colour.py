"""Colour noise: the same number added to all of a picture's pixels of a colour, along the axes of the set's colours.

docs/augmentation.md has the formulas and where the two rules come from.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from dist_alexnet.config import Colour
from dist_alexnet.data.statistics import Statistics
from shards.hashing import hash64, open_interval


@dataclass(frozen=True)
class ColourNoise:
    """The noise of a run.

    axes_33: float64; row i is what one unit of normal number i adds to R, G, B (pixels 0-255). divisor: of the
    picture, mean and noise taken into account. Positions share their noise by `chunk`; from position `until` on there
    is none (None: always).
    """

    axes_33: np.ndarray
    divisor: float
    chunk: int
    until: int | None

    def at(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(noise, divisor) of positions (int64, (images,)): fp32 (images, 3) to add to R, G, B, and fp32 (images,)."""
        points = open_interval(hash64(seed, "view/colour", (positions // self.chunk)[:, None], np.arange(3)))
        normal_b3 = torch.special.ndtri(torch.from_numpy(points).double() / 2**53).numpy()
        # One product after the other: a matrix product may add in another order for another number of images.
        noise_b3 = sum(normal_b3[:, i, None] * self.axes_33[i] for i in range(3))
        on_b = np.ones(len(positions), dtype=bool) if self.until is None else positions < self.until
        noise = np.where(on_b[:, None], noise_b3, 0).astype(np.float32)
        return noise, np.where(on_b, self.divisor, 1).astype(np.float32)


def colour_noise(colour: Colour, statistics: Statistics, epoch_samples: int) -> ColourNoise | None:
    """The noise that the settings ask for, None where it is off. epoch_samples: pictures in an epoch."""
    if not colour.deviation:
        return None
    deviations, vectors_33 = np.array(statistics.deviations), np.array(statistics.vectors)
    if colour.rule == "as-run":
        lengths, divisor = deviations, 1 + colour.deviation
    else:  # the eigenvalues of pixels 0-1, and what they say in units of pixels 0-1, brought to 0-255
        lengths, divisor = (deviations / 255) ** 2 * 255, 1.0
    # As written: 0.29 is 29/100, so that 0.29 epochs of 100 pictures are 29 and not 28.
    until = None if colour.until_epoch is None else math.ceil(Fraction(str(colour.until_epoch)) * epoch_samples)
    return ColourNoise(colour.deviation * lengths[:, None] * vectors_33, divisor, colour.chunk, until)
