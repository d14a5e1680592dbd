"""What is said and done of a step that goes wrong, and which batches the steps read after a rollback."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_alexnet.config import Divergence
from dist_alexnet.errors import DivergedError
from dist_alexnet.guard.divergence import DivergenceGuard, Fault, RollbackNeeded, Skipped
from shards.order import data_steps

BATCH = 32


def guard(**settings: Any) -> DivergenceGuard:
    return DivergenceGuard(Divergence.model_validate(settings))


def spiking(action: str = "stop", window_steps: int = 4) -> DivergenceGuard:
    return guard(spike={"factor": 2.0, "window_steps": window_steps, "action": action})


# ---- which batches are read ------------------------------------------------------------------------------------------


@st.composite
def rising_ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Disjoint ranges; neighbours may touch."""
    ranges, at = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=6)):
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    return ranges


@given(rising_ranges(), st.integers(0, 80), st.integers(0, 40))
def test_step_n_reads_the_nth_batch_that_is_not_skipped(ranges: list[tuple[int, int]], first: int, count: int) -> None:
    skipped = {batch for begin, end in ranges for batch in range(begin, end)}
    left = [batch for batch in range(200) if batch not in skipped]
    assert data_steps(np.arange(first, first + count), ranges).tolist() == left[first : first + count]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=6), st.data())
def test_after_any_rollbacks_no_batch_comes_twice_and_none_is_lost(
    faults: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Each time the run goes on to some step, where a fault takes it back, over any of its checkpoints."""
    one = guard(not_finite="rollback", max_rollbacks=len(faults))
    at, skipped = 0, set[int]()
    for forward, wrong in faults:
        fault = Fault(at + forward + wrong, "why", "rollback")
        to = data.draw(st.integers(0, at + forward))
        trained = one.data_steps(np.arange(to, fault.step), BATCH)
        new = one.rolled_back(fault, to, BATCH)
        skipped |= set(trained.tolist())
        assert (new.first, new.end) == (trained[0] * BATCH, (trained[-1] + 1) * BATCH)
        at = to
        left = [batch for batch in range(300) if batch not in skipped]
        assert one.data_steps(np.arange(100), BATCH).tolist() == left[:100]
        assert all(a.end <= b.first for a, b in zip(one.skipped, one.skipped[1:], strict=False))
    assert one.rollbacks == len(faults)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_the_last_layer_is_named() -> None:
    """Backward comes to it first; those before it are counted."""
    spoilt = [("conv1", "conv1.weight"), ("fc6", "fc6.weight"), ("fc6", "fc6.bias")]
    fault = guard().fault(60, math.nan, False, spoilt)
    assert fault is not None
    assert fault.why == (
        "step 60: the gradient is not finite in layer fc6 (fc6.weight, fc6.bias) and, behind it in backward, in 1 "
        "more, the loss is nan"
    )
    alone = guard().fault(60, 2.5, False, spoilt[1:])
    assert alone is not None
    assert alone.why == "step 60: the gradient is not finite in layer fc6 (fc6.weight, fc6.bias), the loss is 2.5"
    loss_only = guard().fault(7, math.inf, False)
    assert loss_only is not None
    assert loss_only.why == "step 7: the loss is inf"
    assert guard().fault(7, 2.5, True) is None


def test_a_receipt_names_the_positions() -> None:
    assert str(Skipped(3200, 3840, "step 60: the loss is nan")) == (
        "positions 3200 to 3839 are skipped: step 60: the loss is nan"
    )


# ---- what is done ----------------------------------------------------------------------------------------------------


def test_stop_is_the_default() -> None:
    one = guard()
    fault = one.fault(60, math.nan, False)
    assert fault is not None
    with pytest.raises(
        DivergedError, match=r"^step 60: the loss is nan: start another run .* or set divergence"
    ) as caught:
        one.act(fault)
    assert not isinstance(caught.value, RollbackNeeded)


def test_skips_are_counted_in_a_row_and_in_all() -> None:
    one = guard(not_finite="skip", max_skipped_in_a_row=2, max_skipped_steps=3)

    def step(is_finite: bool) -> str | None:
        fault = one.fault(1, 1.0, is_finite)
        return None if fault is None else one.act(fault)

    assert [step(finite) is None for finite in (False, False, True, False)] == [False, False, True, False]
    assert one.skipped_steps == 3
    with pytest.raises(
        DivergedError, match=r"the loss is 1, and divergence\.max_skipped_steps \(3\) is used up: start"
    ):
        step(False)
    other = guard(not_finite="skip", max_skipped_in_a_row=0)
    with pytest.raises(DivergedError, match=r"divergence\.max_skipped_in_a_row \(0\) is used"):
        other.act(Fault(1, "step 1: the loss is nan", "skip"))


def test_weights_that_are_not_finite_cannot_be_skipped() -> None:
    skipping, going_back = guard(not_finite="skip"), guard(not_finite="rollback")
    with pytest.raises(DivergedError, match=r"^step 9: a weight is not finite after it, so it is not saved: start"):
        skipping.act(skipping.weights_fault(9))
    with pytest.raises(RollbackNeeded):
        going_back.act(going_back.weights_fault(9))


def test_so_many_rollbacks() -> None:
    one = guard(not_finite="rollback", max_rollbacks=1)
    fault = one.fault(9, math.nan, False)
    assert fault is not None
    with pytest.raises(RollbackNeeded):
        one.act(fault)
    one.rolled_back(fault, 5, BATCH)
    one.restore(None)  # the checkpoint is older than the rollback
    with pytest.raises(DivergedError, match=r"and divergence\.max_rollbacks \(1\) is used up: start") as caught:
        one.act(fault)
    assert not isinstance(caught.value, RollbackNeeded)


def test_a_spike_is_seen_against_a_full_window_of_good_steps() -> None:
    one = spiking()
    assert [one.fault(number, 9.0**number, True) for number in range(1, 5)] == [None] * 4
    one = spiking()
    for number, loss in enumerate((4.0, 1.0, 2.0, 3.0)):
        assert one.fault(number, loss, True) is None
    assert one.fault(5, 5.0, True) is None  # twice the median is no more than it
    fault = one.fault(6, 5.01, True)  # the window is 1 2 3 5 now
    assert fault is not None
    assert fault.why == "step 6: the loss is 5.01, more than 2 times 2.5, the median of 4 steps before"
    assert one.fault(6, 5.01, True) == fault  # a spike is no part of the window
    assert one.fault(7, math.inf, False, []) is not None


def test_the_state_is_plain_and_goes_on() -> None:
    one = spiking(action="skip")
    for number, loss in enumerate((0.1, 0.2, 0.3)):
        one.fault(number, loss, True)
    one.rolled_back(Fault(40, "why", "rollback"), 30, BATCH)
    one.act(Fault(41, "why", "skip"))
    other = spiking(action="skip")
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    assert other.data_steps(np.array([29, 30]), BATCH).tolist() == [29, 40]
    other.restore(None)  # back to the start: what is counted begins anew, what is skipped stays so
    assert (other.skipped_steps, other.rollbacks, other.skipped) == (0, 1, one.skipped)
    assert other.state()["losses"] == []
