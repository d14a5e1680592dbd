"""What is counted of steps, and of those that were left out."""

import math

import pytest
import torch

from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.track.meter import Meter

BATCH = 4


def sums(loss: float, top1: float, top5: float, images: float) -> torch.Tensor:
    return torch.tensor([loss, top1, top5, images], dtype=torch.float64)


def test_of_a_step_that_was_left_out_only_bad_pictures_count(alone: Mesh) -> None:
    meter = Meter(torch.device("cpu"), alone.data, BATCH)
    meter.add(sums(10, 2, 3, 3))
    meter.add(sums(math.nan, 0, 0, 2), counts=False)
    assert meter.agree() == 1 + 2
    assert meter.values() == {"train/loss": 10 / BATCH, "train/top1": pytest.approx(2 / 3), "train/top5": 1.0}
    assert (meter.agreed.steps, meter.agreed.bad_samples) == (1, 3)
    assert meter.agree() == 0


def test_what_was_not_agreed_on_is_forgotten(alone: Mesh) -> None:
    """A run that goes back to a checkpoint leaves the steps since the last line behind."""
    meter = Meter(torch.device("cpu"), alone.data, BATCH)
    meter.add(sums(10, 2, 3, 3))
    meter.agree()
    state = meter.state()
    meter.add(sums(50, 1, 1, 1))
    meter.add(sums(50, 1, 1, 1), counts=False)
    meter.restore(state)
    assert meter.agree() == 0
    assert meter.state() == state
    meter.restore({})
    assert (meter.agreed.steps, meter.agreed.bad_samples) == (0, 0)
