"""Colour noise: standard normal at hashed points along the set's axes; exact about where it ends."""

from typing import Any

import numpy as np
import pytest
import torch

from dist_alexnet.config import Colour, Data
from dist_alexnet.data.colour import ColourNoise, colour_noise
from dist_alexnet.data.statistics import IMAGENET, Statistics
from dist_alexnet.data.view import centre_views, training_views
from tests.network.plain import word

EPOCH = 1000
GOLDEN = [[-8.526916, -7.624387, -6.225207], [-10.533504, -12.693999, -13.204126]]


def noise(statistics: Statistics = IMAGENET, **settings: Any) -> ColourNoise:
    made = colour_noise(Colour.model_validate({"deviation": 0.1, **settings}), statistics, EPOCH)
    assert made is not None
    return made


def test_it_is_off_by_default() -> None:
    assert colour_noise(Colour(), IMAGENET, EPOCH) is None
    views = training_views(np.arange(9), 0, Data(), None)
    assert not views.noise.any()
    assert (views.divisor == 1).all()


@pytest.mark.parametrize(("rule", "divisor"), [("as-run", 1.1), ("as-written", 1.0)])
def test_the_rule_by_hand(rule: str, divisor: float) -> None:
    """Each number out of the hash and the inverse of the normal distribution, one by one."""
    added, divisors = noise(rule=rule).at(np.array([0, 7, 10**12]), 12345)
    assert added.dtype == divisors.dtype == np.float32
    assert divisors.tolist() == [np.float32(divisor)] * 3
    for row, position in zip(added, (0, 7, 10**12), strict=True):
        expected = np.zeros(3)
        for i in range(3):
            point = ((word(12345, "view/colour", position, i) >> 12) + 0.5) / 2**52
            alpha = 0.1 * float(torch.special.ndtri(torch.tensor(point, dtype=torch.float64)))
            sd = IMAGENET.deviations[i]
            size = alpha * sd if rule == "as-run" else alpha * (sd / 255) ** 2 * 255
            expected += size * np.array(IMAGENET.vectors[i])
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_golden_noise() -> None:
    """Frozen: a change here is another run for everybody who has one going."""
    added, _ = noise().at(np.array([0, 1]), 0)
    assert added == pytest.approx(np.array(GOLDEN), rel=1e-6)


@pytest.mark.parametrize("rule", ["as-run", "as-written"])
def test_mean_and_covariance(rule: str) -> None:
    """Over many positions: mean 0, covariance deviation^2 V diag(lambda) V^T, within what chance allows."""
    images = 200_000
    added, divisor = noise(rule=rule).at(np.arange(images), 4)
    deviations, vectors = np.array(IMAGENET.deviations), np.array(IMAGENET.vectors)
    variance = deviations**2 if rule == "as-run" else ((deviations / 255) ** 2 * 255) ** 2
    expected = 0.01 * vectors.T @ np.diag(variance) @ vectors
    seen = added.astype(np.float64)
    if rule == "as-run":  # what reaches the network is also divided
        seen, expected = seen / divisor[:, None].astype(np.float64), expected / 1.1**2
    spread = np.sqrt(np.diag(expected))
    assert (np.abs(seen.mean(0)) < 4.5 * spread / images**0.5).all()
    # A covariance of n samples of a normal distribution has the variance (s_ij^2 + s_ii s_jj) / n.
    chance = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / images)
    assert (np.abs(np.cov(seen.T) - expected) < 4.5 * chance).all()
    along = seen @ vectors.T  # along the axes: uncorrelated, normal
    along /= along.std(0)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 4.5 / images**0.5
    assert np.mean(along**4, axis=0) == pytest.approx(3, abs=4.5 * (96 / images) ** 0.5)
    assert np.mean(along[1:] * along[:-1], axis=0) == pytest.approx(0, abs=4.5 / images**0.5)


def test_noise_does_not_know_its_batch() -> None:
    positions = np.arange(500, 600)
    whole, _ = noise().at(positions, 3)
    one_by_one = np.concatenate([noise().at(positions[i : i + 1], 3)[0] for i in range(100)])
    assert np.array_equal(whole, one_by_one)
    turned = np.random.default_rng(0).permutation(100)
    assert np.array_equal(noise().at(positions[turned], 3)[0], whole[turned])
    assert not np.isclose(noise().at(positions, 4)[0], whole).any()
    assert noise().at(np.arange(0), 3)[0].shape == (0, 3)


def test_a_chunk_shares_its_noise() -> None:
    added, _ = noise(chunk=32).at(np.arange(100), 3)
    apart, _ = noise().at(np.arange(4), 3)
    assert np.array_equal(added, apart[np.arange(100) // 32])


@pytest.mark.parametrize(
    ("until_epoch", "first_without"),
    [(0, 0), (2, 2000), (0.29, 290), (0.2905, 291), (4.6, 4600), (1e-3, 1)],
)
def test_it_ends_at_the_very_position(until_epoch: float, first_without: int) -> None:
    """0.29 and 4.6 are not exact in binary; a position is off if it stands at or past the epoch."""
    added, divisor = noise(until_epoch=until_epoch).at(np.arange(5000), 3)
    assert np.array_equal(added.any(1), np.arange(5000) < first_without)
    assert np.array_equal(divisor == np.float32(1.1), np.arange(5000) < first_without)
    assert (divisor[first_without:] == 1).all()


def test_a_grey_set_gets_grey_noise() -> None:
    grey = (1 / 3**0.5,) * 3
    statistics = Statistics(
        mean=(9, 9, 9),
        deviations=(0, 0, 80.0),
        vectors=((0.8164965809, -0.4082482904, -0.4082482904), (0, 0.7071067812, -0.7071067812), grey),
    )
    added, _ = noise(statistics).at(np.arange(100), 3)
    assert np.ptp(added, axis=1).max() == 0
    assert added[:, 0].std() == pytest.approx(0.1 * 80 / 3**0.5, rel=0.3)


def test_a_view_carries_it_and_evaluation_never_does() -> None:
    settings = Data.model_validate({"augment": {"colour": {"deviation": 0.1}}})
    made = noise()
    views = training_views(np.arange(8), 5, settings, made)
    assert np.array_equal(views.noise, made.at(np.arange(8), 5)[0])
    assert (views.divisor == np.float32(1.1)).all()
    centre = centre_views(8, settings)
    assert not centre.noise.any()
    assert (centre.divisor == 1).all()
