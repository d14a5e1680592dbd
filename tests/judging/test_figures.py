"""Counts, ties, intervals and classes, on tables small enough to count by hand."""

import math

import numpy as np
import pytest

from dist_alexnet.judging.figures import Truth, ahead_of, figures_of, mean_loss, one_right_class, wilson

NONE_BAD = np.zeros(3, dtype=bool)


def test_ties_fall_to_the_lower_class_and_nan_is_wrong() -> None:
    score_NC = np.array([[1.0, 2, 2, 0], [2, 2, 2, 2], [np.nan, 1, 2, 3]])
    pairs = Truth(np.array([0, 0, 1, 1, 2, 2]), np.array([1, 2, 0, 3, 0, 3]))
    assert ahead_of(score_NC, pairs).tolist() == [0, 1, 0, 3, 4, 1]


def test_a_difference_of_one_bit_in_fp64_is_no_tie() -> None:
    """What fp32 would call equal is not: averages are ranked in fp64."""
    score_NC = np.full((1, 6), 1 / 6)
    score_NC[0, 5] = np.nextafter(1 / 6, 1)
    assert score_NC.astype(np.float32).max() == score_NC.astype(np.float32).min()
    assert ahead_of(score_NC, one_right_class(np.array([5]))).tolist() == [0]
    assert ahead_of(score_NC, one_right_class(np.array([0]))).tolist() == [1]
    assert ahead_of(score_NC, one_right_class(np.array([4]))).tolist() == [5]  # so not in the five best


def test_many_pairs_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    score_NC = random.integers(0, 5, (50, 9)).astype(np.float32)
    truth = Truth(np.sort(random.integers(0, 50, 200)), random.integers(0, 9, 200))
    order = np.argsort(-score_NC, axis=1, kind="stable")
    expected = [int(np.flatnonzero(order[i] == c)[0]) for i, c in zip(truth.image_P, truth.class_P, strict=True)]
    monkeypatch.setattr("dist_alexnet.judging.figures.PAIRS_AT_A_TIME", 7)
    assert ahead_of(score_NC, truth).tolist() == expected


def test_several_right_classes_and_none() -> None:
    """An image counts where one of its classes is among the best, and not at all where it has none."""
    score_NC = np.array([[0.5, 0.3, 0.2, 0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.3, 0.2]])
    truth = Truth(np.array([0, 0, 1]), np.array([1, 0, 0]))
    figures = figures_of(score_NC, NONE_BAD, truth, 0.0)
    assert (figures.images, figures.unlabelled_images) == (2, 1)
    assert (figures.top1_correct, figures.top5_correct) == (1, 2)
    assert mean_loss(score_NC, NONE_BAD, truth) == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 2)
    rows = {row.number: (row.images, row.top1_correct) for row in figures.per_class}
    assert rows == {0: (2, 1), 1: (1, 1)}


def test_a_bad_picture_is_wrong_and_not_in_the_loss() -> None:
    score_NC = np.array([[0.9, 0.1], [0.0, 0.0], [0.4, 0.6]])
    bad, truth = np.array([False, True, False]), one_right_class(np.array([0, 0, 0]))
    figures = figures_of(score_NC, bad, truth, mean_loss(score_NC, bad, truth), ("cat", "dog"))
    assert (figures.images, figures.bad_images, figures.top1_correct, figures.top5_correct) == (3, 1, 1, 2)
    assert figures.loss == pytest.approx(-(math.log(0.9) + math.log(0.4)) / 2)
    (cat,) = figures.per_class
    assert (cat.name, cat.images, cat.wrong_answer, cat.wrong_answers) == ("cat", 3, 1, 1)
    (nameless,) = figures_of(score_NC, bad, one_right_class(np.array([1, 1, 1])), 0.0, ("cat",)).per_class
    assert (nameless.number, nameless.name) == (1, None)


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    truth = one_right_class(np.array([1, 0, 0]))
    score_NC = np.array([[1.0, 0], [1, 0], [1, 0]])
    assert mean_loss(score_NC, NONE_BAD, truth) == pytest.approx(149 * math.log(2) / 3)


def test_the_most_frequent_wrong_answer_is_the_lower_of_two_as_frequent() -> None:
    best = [3, 2, 2, 3, 0]
    figures = figures_of(np.eye(4)[best], np.zeros(5, dtype=bool), one_right_class(np.zeros(5, dtype=int)), 0.0)
    (row,) = figures.per_class
    assert (row.wrong_answer, row.wrong_answers, row.top1_correct) == (2, 2, 1)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0), (28800, 50000, 0.57166, 0.58033)],
)
def test_wilson(correct: int, images: int, low: float, high: float) -> None:
    """Newcombe (1998), method 3; the last one by its formula in another form."""
    assert wilson(correct, images) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))
    p, z = correct / images, 1.959963984540054
    for bound in wilson(correct, images):  # the interval's ends solve (p - b)^2 = z^2 b (1 - b) / n
        assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / images, abs=1e-12)
