"""Boxes in stored pictures: inside the picture, of the sizes and shapes asked for, at the hashed numbers."""

import math

import numpy as np
import pytest

from dist_alexnet.config import Data
from dist_alexnet.data.crop import resized_box, square_box
from dist_alexnet.data.view import training_views
from tests.network.plain import word

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
RESIZED = Data.model_validate({"augment": {"crop": "resized"}})
GOLDEN = [(169, 51, 401, 313), (141, 104, 451, 350), (206, 195, 355, 336)]


@pytest.mark.parametrize(("width", "height"), [(256, 256), (500, 375), (375, 500), (61, 140), (8, 300)])
def test_a_square_box_lies_in_the_centre_square(width: int, height: int) -> None:
    short = min(width, height)
    for left, top in ((0, 0), (32, 32), (5, 17)):
        x, y, right, bottom = square_box(width, height, left, top, 256, 224)
        assert (width - short) // 2 <= x < right <= (width - short) // 2 + short + 1e-9
        assert (height - short) // 2 <= y < bottom <= (height - short) // 2 + short + 1e-9
        assert right - x == pytest.approx(224 / 256 * short)
        assert bottom - y == pytest.approx(224 / 256 * short)


def by_definition(seed: int, position: int, width: int, height: int) -> tuple[int, int, int, int] | None:
    """torchvision's rule at numbers of the hash, in plain Python; None where no try fits."""
    for attempt in range(10):
        area, shape, down, right = (
            (word(seed, "view/resized", position, 4 * attempt + which) >> 11) / 2**53 for which in range(4)
        )
        target = width * height * (0.08 + 0.92 * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            y, x = math.floor(down * (height - h + 1)), math.floor(right * (width - w + 1))
            return x, y, x + w, y + h
    return None


@pytest.mark.parametrize(("width", "height"), [(500, 375), (256, 256), (300, 900), (40, 33)])
def test_a_resized_box_is_the_rule_at_hashed_numbers(width: int, height: int) -> None:
    views = training_views(np.arange(200), 9, RESIZED, None)
    fell_back = 0
    for position in range(200):
        expected = by_definition(9, position, width, height)
        fell_back += expected is None
        if expected is not None:
            assert views.box(position, width, height) == expected
    assert fell_back < 30


def test_golden_boxes() -> None:
    """Frozen: a change here is another run for everybody who has one going."""
    views = training_views(np.array([0, 1, 10**12]), 0, RESIZED, None)
    assert [views.box(slot, 500, 375) for slot in range(3)] == GOLDEN


def test_resized_boxes_fill_scale_and_ratio() -> None:
    images, width, height = 6000, 500, 375
    views = training_views(np.arange(images), 1, RESIZED, None)
    boxes = np.array([views.box(slot, width, height) for slot in range(images)])
    x, y, right, bottom = boxes.T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    area, shape = (right - x) * (bottom - y) / (width * height), np.log((right - x) / (bottom - y))
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.95
    small = area[area < 0.5]  # those always fit, so they are as they were drawn: uniform
    assert np.median(small) == pytest.approx(0.29, abs=0.012)
    assert np.abs(shape).max() < math.log(4 / 3) + 0.01
    assert np.mean(shape[area < 0.5]) == pytest.approx(0, abs=0.015)
    assert np.var(shape[area < 0.5]) == pytest.approx(math.log(4 / 3) ** 2 / 3, rel=0.1)
    room = np.stack([x, y, width - right + x, height - bottom + y])[:, area < 0.5]
    across, down = room[0] / room[2], room[1] / room[3]
    assert (across.mean(), down.mean()) == pytest.approx((0.5, 0.5), abs=0.02)
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [
        ((1000, 10), RATIO, (493, 0, 506, 10)),  # too wide: the whole height, 4/3 of it wide
        ((10, 1000), RATIO, (0, 493, 10, 506)),
        ((100, 100), RATIO, (0, 0, 100, 100)),  # of an allowed shape: whole
        ((50, 1), (0.1, 0.2), (24, 0, 25, 1)),  # never empty
        ((1, 50), (5, 9), (0, 24, 1, 25)),
    ],
)
def test_where_no_try_fits_the_largest_box_in_the_centre(
    size: tuple[int, int], ratio: tuple[float, float], expected: tuple[int, int, int, int]
) -> None:
    none_fits = np.full((10, 4), 1 - 2**-53)
    assert resized_box(*size, none_fits, (1.5, 2.0), ratio) == expected


def test_a_box_of_any_picture_is_not_empty() -> None:
    views = training_views(np.arange(100), 3, RESIZED, None)
    for width, height in ((1, 1), (1, 50), (50, 1), (3, 2), (2000, 5)):
        for slot in range(100):
            x, y, right, bottom = views.box(slot, width, height)
            assert 0 <= x < right <= width
            assert 0 <= y < bottom <= height
