"""Crop and flip are functions of (seed, position): frozen, spread over all places, blind to batches."""

from typing import Any

import numpy as np
import pytest

from dist_alexnet.config import Data
from dist_alexnet.data.view import Views, centre_views, training_views
from tests.network.plain import word

GOLDEN_SEED_0 = [(18, 2, False), (26, 6, True), (16, 29, True), (23, 31, False)]
GOLDEN_SEED_12345 = [(27, 24, True), (6, 22, True), (6, 11, True), (21, 13, True)]


def data(**values: Any) -> Data:
    return Data.model_validate(values)


def listed(views: Views) -> list[tuple[int, int, bool]]:
    return list(zip(views.left.tolist(), views.top.tolist(), views.mirror.tolist(), strict=True))


def test_golden_values() -> None:
    """Frozen: a change here is another run for everybody who has one going."""
    assert listed(training_views(np.array([0, 1, 2, 10**12]), 0, data(), None)) == GOLDEN_SEED_0
    assert listed(training_views(np.array([0, 1, 2, 10**12]), 12345, data(), None)) == GOLDEN_SEED_12345


def test_a_view_is_the_hash_scaled_to_its_range() -> None:
    views = training_views(np.arange(50), 9, data(resize=40, image_size=30), None)
    for position in range(50):
        expected = [
            (word(9, f"view/{what}", position, 0) >> 32) * places >> 32
            for what, places in (("left", 11), ("top", 11), ("mirror", 2))
        ]
        assert [views.left[position], views.top[position], views.mirror[position]] == expected


def test_every_place_of_the_grid_is_reached_evenly() -> None:
    images = 60_000
    views = training_views(np.arange(images), 1, data(), None)
    grid = np.zeros((33, 33), dtype=int)
    np.add.at(grid, (views.top, views.left), 1)
    mean = images / 33**2
    assert grid.min() > 0.4 * mean
    assert grid.max() < 1.7 * mean
    assert abs(np.corrcoef(views.left, views.top)[0, 1]) < 0.02
    assert views.mirror.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(views.left, views.mirror)[0, 1]) < 0.02


def test_views_do_not_know_their_batch() -> None:
    positions = np.arange(1000, 1100)
    whole = listed(training_views(positions, 3, data(), None))
    turned = np.random.default_rng(0).permutation(100)
    assert listed(training_views(positions[turned], 3, data(), None)) == [whole[i] for i in turned]
    assert [listed(training_views(positions[i : i + 1], 3, data(), None))[0] for i in range(100)] == whole
    assert listed(training_views(positions, 4, data(), None)) != whole
    assert listed(training_views(np.arange(0), 3, data(), None)) == []


def test_a_position_has_another_view_in_each_epoch() -> None:
    epochs = [listed(training_views(np.arange(100) + 4000 * epoch, 3, data(), None)) for epoch in range(3)]
    assert sum(a == b for a, b in zip(epochs[0], epochs[1], strict=True)) < 5
    assert sum(a == b for a, b in zip(epochs[0], epochs[2], strict=True)) < 5


def test_what_is_turned_off_stays_in_the_centre() -> None:
    positions = np.arange(64)
    free = training_views(positions, 3, data(), None)
    uncropped = training_views(positions, 3, data(augment={"crop": False}), None)
    assert (uncropped.left == 16).all()
    assert (uncropped.top == 16).all()
    assert np.array_equal(uncropped.mirror, free.mirror)
    unmirrored = training_views(positions, 3, data(augment={"mirror": False}), None)
    assert not unmirrored.mirror.any()
    assert np.array_equal(unmirrored.left, free.left)


@pytest.mark.parametrize(("resize", "image_size", "offset"), [(256, 224, 16), (72, 64, 4), (64, 64, 0), (65, 64, 0)])
def test_the_centre(resize: int, image_size: int, offset: int) -> None:
    sizes = data(resize=resize, image_size=image_size)
    assert listed(centre_views(3, sizes)) == [(offset, offset, False)] * 3
    views = training_views(np.arange(500), 0, sizes, None)
    assert set(views.left.tolist()) == set(range(resize - image_size + 1))


def test_a_chunk_shares_crop_and_flip() -> None:
    """As in 2012: one crop and one flip for 32 consecutive positions."""
    positions = np.arange(100)
    shared = training_views(positions, 3, data(augment={"crop_chunk": 32}), None)
    apart = listed(training_views(np.arange(4), 3, data(), None))
    assert listed(shared) == [apart[position // 32] for position in range(100)]
    boxes = training_views(positions, 3, data(augment={"crop": "resized", "crop_chunk": 32}), None)
    assert len({boxes.box(slot, 500, 375) for slot in range(96)}) == 3


def test_a_resized_crop_is_mirrored_as_any_other() -> None:
    positions = np.arange(64)
    resized = training_views(positions, 3, data(augment={"crop": "resized"}), None)
    assert np.array_equal(resized.mirror, training_views(positions, 3, data(), None).mirror)


def test_a_view_says_where_to_cut_a_picture_of_any_size() -> None:
    views = training_views(np.arange(20), 3, data(), None)
    for slot in range(20):
        left, top = int(views.left[slot]), int(views.top[slot])
        assert views.box(slot, 256, 256) == (left, top, left + 224, top + 224)
        assert views.box(slot, 522, 512) == (5 + 2 * left, 2 * top, 5 + 2 * left + 448, 2 * top + 448)
