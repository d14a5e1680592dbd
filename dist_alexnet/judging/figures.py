"""What scores come to: counts, errors, intervals, and a row a class. Plain numpy, in one process.

Shapes: N images, C classes, P pairs of an image and a class that is right for it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.parallel.collectives import LEAST_PROBABILITY

Z_95 = 1.959963984540054  # the normal distribution holds 95 % within so many deviations
NEVER = 2**31  # more classes than stand before any
PAIRS_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class Truth:
    """Which classes are right for which image. An image without any is in no figure."""

    image_P: NDArray[np.int64]  # rising
    class_P: NDArray[np.int64]


@dataclass(frozen=True)
class ClassFigures:
    """Of the images for which one class is right. An image with several right classes stands with each of them."""

    number: int
    name: str | None
    images: int
    top1_correct: int
    top5_correct: int
    wrong_answer: int | None  # the most frequent one, the lower of two as frequent
    wrong_answers: int  # how often it was given


@dataclass(frozen=True)
class Figures:
    """Of a whole set. A picture that does not decode counts as wrong, and not in the loss."""

    loss: float  # mean over decoded images, natural logarithm
    images: int  # that have a right class
    bad_images: int
    unlabelled_images: int
    top1_correct: int
    top5_correct: int
    per_class: tuple[ClassFigures, ...]

    @property
    def top1(self) -> float:
        """Part of all images."""
        return self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """Part of all images."""
        return self.top5_correct / self.images

    def as_dict(self) -> dict[str, Any]:
        """Plain values: accuracies, errors, and the 95 % intervals of the accuracies."""
        return {
            **asdict(self),
            "top1": self.top1,
            "top5": self.top5,
            "top1_error": 1 - self.top1,
            "top5_error": 1 - self.top5,
            "top1_interval": wilson(self.top1_correct, self.images),
            "top5_interval": wilson(self.top5_correct, self.images),
        }


def one_right_class(label_N: NDArray[np.int64]) -> Truth:
    """The usual case."""
    return Truth(np.arange(len(label_N)), label_N.astype(np.int64))


def figures_of(
    score_NC: NDArray[Any],
    bad_N: NDArray[np.bool_],
    truth: Truth,
    loss: float,
    names: Sequence[str] | None = None,
) -> Figures:
    """score_NC: what ranks the classes, fp32 or fp64. bad_N: did not decode. loss: as `mean_loss` has it.

    Right in top-k: one of an image's right classes is among its k best. Of equal scores the lower class is better.
    """
    labelled = np.unique(truth.image_P)
    ahead = np.full(len(bad_N), NEVER, dtype=np.int64)
    np.minimum.at(ahead, truth.image_P, ahead_of(score_NC, truth))
    ahead[bad_N] = NEVER
    return Figures(
        loss=loss,
        images=len(labelled),
        bad_images=int(bad_N[labelled].sum()),
        unlabelled_images=len(bad_N) - len(labelled),
        top1_correct=int((ahead[labelled] < 1).sum()),
        top5_correct=int((ahead[labelled] < 5).sum()),
        per_class=_per_class(score_NC.argmax(1), bad_N, ahead, truth, score_NC.shape[1], names),
    )


def ahead_of(score_NC: NDArray[Any], truth: Truth) -> NDArray[np.int64]:
    """How many classes stand before each right one, (P,). Of equal ones the lower stands first; NaN stands before."""
    class_C, ahead = np.arange(score_NC.shape[1]), np.empty(len(truth.image_P), dtype=np.int64)
    for first in range(0, len(ahead), PAIRS_AT_A_TIME):
        some = slice(first, first + PAIRS_AT_A_TIME)
        row_pC, right_p1 = score_NC[truth.image_P[some]], truth.class_P[some, None]
        true_p1 = np.take_along_axis(row_pC, right_p1, axis=1)
        behind_pC = (row_pC < true_p1) | ((row_pC == true_p1) & (class_C >= right_p1))
        ahead[some] = (~behind_pC).sum(1)
    return ahead


def mean_loss(probability_NC: NDArray[Any], bad_N: NDArray[np.bool_], truth: Truth) -> float:
    """Mean over decoded images of -log of the probability of their right classes together, in fp64."""
    right_N = np.zeros(len(bad_N))
    np.add.at(right_N, truth.image_P, probability_NC[truth.image_P, truth.class_P].astype(np.float64))
    counted = np.intersect1d(np.unique(truth.image_P), np.flatnonzero(~bad_N))
    return float(-np.log(np.maximum(right_N[counted], LEAST_PROBABILITY)).sum() / max(1, len(counted)))


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a part: where the true rate may lie if the images were drawn at random."""
    part, z2 = correct / images, Z_95**2
    middle = (part + z2 / (2 * images)) / (1 + z2 / images)
    half = Z_95 / (1 + z2 / images) * math.sqrt(part * (1 - part) / images + z2 / (4 * images**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _per_class(
    best_N: NDArray[Any],
    bad_N: NDArray[np.bool_],
    ahead_N: NDArray[np.int64],
    truth: Truth,
    classes: int,
    names: Sequence[str] | None,
) -> tuple[ClassFigures, ...]:
    """Of the classes that are right for some image, by number."""
    found = []
    order = np.argsort(truth.class_P, kind="stable")
    starts = np.searchsorted(truth.class_P[order], np.arange(classes + 1))
    for number in range(classes):
        images = truth.image_P[order[starts[number] : starts[number + 1]]]
        if len(images) == 0:
            continue
        wrong = images[(ahead_N[images] > 0) & ~bad_N[images]]
        answers = np.bincount(best_N[wrong], minlength=classes) if len(wrong) else np.zeros(1, dtype=np.int64)
        found.append(
            ClassFigures(
                number,
                None if names is None or number >= len(names) else names[number],
                len(images),
                int((ahead_N[images] < 1).sum()),
                int((ahead_N[images] < 5).sum()),
                int(answers.argmax()) if len(wrong) else None,
                int(answers.max()),
            )
        )
    return tuple(found)
