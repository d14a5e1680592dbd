"""The number for specialisation on filters whose answer is known, and how filters are shown."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dist_alexnet.pictures.filters import draw_filters, filter_mosaics, filter_tiles, specialisation

K = 11


def gabor(angle: float, phase: float = 0.0, size: int = K) -> NDArray[np.float32]:
    """An edge filter without colour, (3, K, K)."""
    y, x = np.mgrid[:size, :size] - size // 2
    wave = np.cos((x * np.cos(angle) + y * np.sin(angle)) + phase) * np.exp(-(x**2 + y**2) / 12)
    return np.stack([wave] * 3).astype(np.float32)


def blob(red: float, green: float, blue: float, size: int = K) -> NDArray[np.float32]:
    """A spot of one colour, (3, K, K)."""
    y, x = np.mgrid[:size, :size] - size // 2
    spot = np.exp(-(x**2 + y**2) / 12)
    return np.stack([red * spot, green * spot, blue * spot]).astype(np.float32)


def grey_and_coloured(each: int = 48) -> NDArray[np.float32]:
    grey = [gabor(number, number / 3) for number in range(each)]
    coloured = [blob(1, -1, 0) if number % 2 else blob(-1, -1, 2) for number in range(each)]
    return np.stack(grey + coloured)


def test_grey_edges_against_spots_of_colour() -> None:
    found = specialisation(grey_and_coloured(), 2)
    assert found.colour_by_column == pytest.approx((0, 1), abs=1e-6)
    assert found.coloured_by_column == (0, 1)
    assert found.difference == pytest.approx(1, abs=1e-6)
    assert len(found.colour_by_filter) == 96


def test_which_column_is_which_does_not_matter() -> None:
    filters = grey_and_coloured()
    mixed = np.concatenate([filters[24:72], filters[:24], filters[72:]])
    for some in (filters, mixed):
        there, back = specialisation(some, 2), specialisation(np.concatenate([some[48:], some[:48]]), 2)
        assert back.difference == pytest.approx(there.difference)
        assert back.colour_by_column == pytest.approx(there.colour_by_column[::-1])
    assert specialisation(mixed, 2).difference == pytest.approx(0, abs=1e-6)


def test_plain_brightness_counts_neither_as_grey_nor_as_colour() -> None:
    """On a spot of colour that would not be seen otherwise; and an edge stays grey on any brightness."""
    for one, expected in ((blob(1, 0, -1), 1.0), (gabor(1), 0.0)):
        assert specialisation((one + 10)[None], 1).colour_by_filter[0] == pytest.approx(expected, abs=1e-5)


def test_a_known_part_of_colour() -> None:
    """An edge with a spot of colour on it: as much energy in both, and three times as much in the edge."""
    grey, colour = gabor(1) - gabor(1).mean(), blob(1, -1, 0)
    grey, colour = grey / np.linalg.norm(grey), colour / np.linalg.norm(colour)
    found = specialisation(np.stack([grey + colour, np.sqrt(3) * grey + colour]), 1)
    assert found.colour_by_filter == pytest.approx((0.5, 0.25), abs=1e-5)
    assert found.colour_by_column == pytest.approx((0.375,), abs=1e-5)


def test_initial_values_have_two_thirds_and_no_specialisation() -> None:
    filters = np.random.default_rng(0).normal(0, 0.01, (96, 3, K, K)).astype(np.float32)
    found = specialisation(filters, 2)
    assert found.colour_by_column == pytest.approx((2 / 3, 2 / 3), abs=0.01)
    assert found.difference is not None
    assert found.difference < 0.01


def test_constant_and_empty_filters_have_no_colour_to_judge() -> None:
    for value in (0.0, 0.1, -3.7):
        filters = np.full((2, 3, 5, 5), value, dtype=np.float32)
        assert specialisation(filters, 1).colour_by_filter == (0.0, 0.0)


@pytest.mark.parametrize(("count", "columns", "size"), [(1, 1, 3), (7, 1, 5), (64, 1, 11), (24, 2, 11), (6, 2, 1)])
def test_other_networks(count: int, columns: int, size: int, tmp_path: Path) -> None:
    filters = np.random.default_rng(1).normal(size=(count, 3, size, size)).astype(np.float32)
    found = specialisation(filters, columns)
    assert len(found.colour_by_column) == columns
    assert (found.difference is None) == (columns == 1)
    draw_filters(filters, columns, tmp_path / "filters.png")
    assert Image.open(tmp_path / "filters.png").size[0] >= 100


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-6, 1e6), st.integers(0, 10**6))
def test_scale_does_not_matter_and_all_is_between_0_and_1(scale: float, seed: int) -> None:
    filters = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
    found = specialisation(filters, 2)
    assert all(0 <= one <= 1 for one in found.colour_by_filter)
    assert specialisation(filters * np.float32(scale), 2).colour_by_filter == pytest.approx(
        found.colour_by_filter, abs=1e-5
    )


def test_a_tile_shows_zero_as_grey_and_its_largest_element_as_black_or_white() -> None:
    one = np.zeros((2, 3, 3, 3), dtype=np.float32)
    one[0, :, 0, 0], one[0, 0, 2, 2] = -0.002, 0.001
    tile, nothing = filter_tiles(one)
    assert tile[0, 0].tolist() == [0, 0, 0]
    assert tile[1, 1].tolist() == [128, 128, 128]
    assert tile[2, 2].tolist() == [191, 128, 128]
    assert (nothing == 128).all()


def test_filters_stand_in_rows_as_in_the_paper() -> None:
    """48 of a column: three rows of 16, the first filter of the second column first in the second picture."""
    mosaics = filter_mosaics(grey_and_coloured(), 2)
    side, gap = 44, 4
    assert [one.shape for one in mosaics] == [(3 * side + 2 * gap, 16 * side + 15 * gap, 4)] * 2
    assert (mosaics[0][..., 0] == mosaics[0][..., 1]).all()
    assert (mosaics[1][..., 0] != mosaics[1][..., 1]).any()
    assert (mosaics[0][:, side : side + gap, 3] == 0).all()
    first = filter_tiles(grey_and_coloured())[16].repeat(4, 0).repeat(4, 1)
    assert (mosaics[0][side + gap : 2 * side + gap, :side, :3] == first).all()


def test_the_same_filters_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_filters(grey_and_coloured(), 2, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))
    assert not picture.info.get("Software")
