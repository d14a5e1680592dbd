"""The loss scale of fp16 behaves as torch's GradScaler, and its state is plain numbers."""

import json

import torch

from dist_alexnet.optim.scale import GROWTH_STEPS, SMALLEST, START, LossScale


def test_the_constants_are_torchs() -> None:
    theirs = torch.amp.GradScaler("cpu").state_dict()
    assert (theirs["scale"], theirs["growth_interval"]) == (START, GROWTH_STEPS)
    assert (1 / theirs["backoff_factor"], theirs["growth_factor"]) == (2.0, 2.0)


def test_half_after_a_dropped_step_twice_after_2000_good_ones() -> None:
    scale = LossScale()
    for _ in range(1999):
        scale.settle(False)
    assert (scale.scale, scale.dropped_steps) == (65536, 0)
    scale.settle(False)
    assert scale.scale == 131072
    scale.settle(True)
    scale.settle(True)
    assert (scale.scale, scale.dropped_steps) == (32768, 2)
    for _ in range(1500):
        scale.settle(False)
    scale.settle(True)  # the count of good steps begins anew
    for _ in range(1999):
        scale.settle(False)
    assert scale.scale == 16384


def test_a_checkpoint_goes_on_with_it() -> None:
    scale, again = LossScale(), LossScale()
    for dropped in (True, False, False):
        scale.settle(dropped)
    again.restore(json.loads(json.dumps(scale.state())))
    assert again.state() == scale.state() == {"scale": 32768.0, "good_steps": 2, "dropped_steps": 1}


def test_where_it_can_fall_no_further() -> None:
    scale = LossScale()
    while not scale.is_smallest:
        scale.settle(True)
    assert (scale.scale, scale.dropped_steps) == (SMALLEST, 30)
