"""The learning rate at the very steps where it changes."""

import math
from typing import Any

import pytest

from dist_alexnet.config import Schedule
from dist_alexnet.optim.schedules import rate_at


def schedule(**values: Any) -> Schedule:
    return Schedule.model_validate(values)


def test_constant() -> None:
    assert {rate_at(schedule(name="constant"), 0.01, epoch) for epoch in (0, 25, 1e6)} == {0.01}


@pytest.mark.parametrize(
    ("epoch", "drops"),
    [
        (0, 0),
        (math.nextafter(25, 0), 0),
        (25, 1),
        (math.nextafter(51, 0), 1),
        (51, 2),
        (math.nextafter(79, 0), 2),
        (79, 3),
        (500, 3),
    ],
)
def test_steps_of_2012(epoch: float, drops: int) -> None:
    assert rate_at(Schedule(), 0.01, epoch) == pytest.approx(0.01 / 10**drops, rel=1e-12)


def test_a_drop_falls_on_the_step_whose_first_sample_is_the_epochs_first() -> None:
    """Batch 64 of 4000 images: step 525 (counted from 0) begins at epoch 8.4 exactly, as floats too."""
    at = schedule(at_epochs=[8.4], factor=0.5)
    rates = [rate_at(at, 1.0, step * 64 / 4000) for step in range(520, 530)]
    assert rates == [1.0] * 5 + [0.5] * 5


def test_no_drops_and_a_factor_of_ones_own() -> None:
    assert rate_at(schedule(at_epochs=[]), 0.3, 99) == 0.3
    assert rate_at(schedule(at_epochs=[0, 1], factor=0.5), 1.0, 0) == 0.5
    assert rate_at(schedule(at_epochs=[0, 1], factor=2), 1.0, 1) == 4.0
