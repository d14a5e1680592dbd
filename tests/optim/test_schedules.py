"""The learning rate at the very steps where it changes."""

import math
from fractions import Fraction
from typing import Any

import pytest

from dist_alexnet.config import Config, Schedule
from dist_alexnet.errors import ConfigError
from dist_alexnet.job import check_phases, network_of
from dist_alexnet.network.spec import load_spec
from dist_alexnet.optim.schedules import Plateau, Rates, Role

LENGTH = Fraction(100)


def schedule(**values: Any) -> Schedule:
    return Schedule.model_validate(values)


def exact(number: float) -> Fraction:
    return Fraction(str(number))


def rate_at(chosen: Schedule, lr: float, epoch: float | Fraction, drops: int = 0) -> float:
    place = epoch if isinstance(epoch, Fraction) else exact(epoch)
    return Rates(chosen, lr, place, LENGTH, drops).base


def test_constant() -> None:
    assert {rate_at(schedule(name="constant"), 0.01, epoch) for epoch in (0, 25, 10**6)} == {0.01}


JUST_BEFORE = Fraction(1, 10**12)


@pytest.mark.parametrize(
    ("epoch", "drops"),
    [
        (Fraction(0), 0),
        (25 - JUST_BEFORE, 0),
        (Fraction(25), 1),
        (51 - JUST_BEFORE, 1),
        (Fraction(51), 2),
        (79 - JUST_BEFORE, 2),
        (Fraction(79), 3),
        (Fraction(500), 3),
    ],
)
def test_steps_of_2012(epoch: Fraction, drops: int) -> None:
    assert rate_at(Schedule(), 0.01, epoch) == pytest.approx(0.01 / 10**drops, rel=1e-12)


def test_a_drop_falls_on_the_step_whose_first_sample_is_the_epochs_first() -> None:
    """Batch 64 of 4000 images: step 525 (counted from 0) begins at epoch 8.4 exactly, whose float lies beside it."""
    at = schedule(at_epochs=[8.4], factor=0.5)
    rates = [rate_at(at, 1.0, Fraction(step * 64, 4000)) for step in range(520, 530)]
    assert rates == [1.0] * 5 + [0.5] * 5


def test_no_drops_and_a_factor_of_ones_own() -> None:
    assert rate_at(schedule(at_epochs=[]), 0.3, 99) == 0.3
    assert rate_at(schedule(at_epochs=[0, 1], factor=0.5), 1.0, 0) == 0.5
    assert rate_at(schedule(at_epochs=[0, 1], factor=2), 1.0, 1) == 4.0


NET_145 = schedule(
    name="manual",
    phases=[
        {"epoch": 25, "weights": 0.001},
        {"epoch": 51, "weights": 0.0001},
        {"epoch": 67, "layers": ["conv1"], "weights": 0.00001},
        {"epoch": 72, "layers": ["conv1"], "weights": 0, "biases": 0},
        {"epoch": 79, "weights": 0.00001},
    ],
)


@pytest.mark.parametrize(
    ("epoch", "conv1", "rest"),
    [
        (0, (0.01, 0.02), (0.01, 0.02)),
        (24.999, (0.01, 0.02), (0.01, 0.02)),
        (25, (0.001, 0.02), (0.001, 0.02)),
        (51, (0.0001, 0.02), (0.0001, 0.02)),
        (66.99, (0.0001, 0.02), (0.0001, 0.02)),
        (67, (0.00001, 0.02), (0.0001, 0.02)),
        (72, (0.0, 0.0), (0.0001, 0.02)),
        (79, (0.0, 0.0), (0.00001, 0.02)),
        (91, (0.0, 0.0), (0.00001, 0.02)),
    ],
)
def test_the_history_of_net_145(epoch: float, conv1: tuple[float, float], rest: tuple[float, float]) -> None:
    """Weights and biases of conv1 and of the others; the network asks for twice the rate for biases."""
    rates = Rates(NET_145, 0.01, exact(epoch), LENGTH)
    for layer, expected in (("conv1", conv1), ("conv2", rest), ("fc8", rest), (None, rest)):
        assert (rates.of(layer, "weight", 1.0), rates.of(layer, "bias", 2.0)) == expected
    assert rates.base == rest[0]
    assert NET_145.named_layers == {"conv1"}


def test_what_a_phase_says_by_name_holds_until_it_names_again() -> None:
    chosen = schedule(
        name="manual",
        phases=[
            {"epoch": 1, "layers": ["a", "b"], "weights": 0.5},
            {"epoch": 2, "weights": 0.1, "biases": 0.2},
            {"epoch": 3, "layers": ["a"], "weights": 0.3},
        ],
    )
    seen = [Rates(chosen, 1.0, Fraction(e), LENGTH).of("a", "weight", 1.0) for e in range(4)]
    assert seen == [1.0, 0.5, 0.5, 0.3]
    assert [Rates(chosen, 1.0, Fraction(e), LENGTH).of("c", "weight", 3.0) for e in range(4)] == [3.0, 3.0, 0.1, 0.1]
    assert [Rates(chosen, 1.0, Fraction(e), LENGTH).of("a", "bias", 2.0) for e in range(4)] == [2.0, 2.0, 0.2, 0.2]


def test_a_phase_for_a_layer_that_is_not_there() -> None:
    values = {"schedule": {"name": "manual", "phases": [{"epoch": 1, "layers": ["conv9"], "weights": 0}]}}
    config = Config.model_validate(values)
    network = network_of(config, load_spec("alexnet-2012"))
    with pytest.raises(ConfigError, match=r"^schedule.phases names layer conv9, expected one of conv1, conv2, .*fc8$"):
        check_phases(config, network)
    check_phases(Config.model_validate({"schedule": NET_145.model_dump()}), network)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.01),
        (24.999, 0.01),
        (25, 0.0015874),
        (49.999, 0.0015874),
        (50, 0.00025198),
        (75, 0.00004),
        (99.999, 0.00004),
        (100, 0.00004),
        (101, 0.00004),
    ],
)
def test_stairs_of_cuda_convnet2(epoch: float, rate: float) -> None:
    """Factor 250 in 4 steps: 0.01, 0.001587, 0.000252, 0.00004 at 25, 50 and 75 % of the run."""
    assert rate_at(schedule(name="dexp"), 0.01, epoch) == pytest.approx(rate, rel=1e-4)


def test_stairs_of_the_biases_are_their_own() -> None:
    chosen = schedule(name="dexp", bias_fall=10, bias_stairs=2)
    rates = [Rates(chosen, 0.01, exact(e), LENGTH).of("conv1", "bias", 2.0) for e in (0, 49.99, 50, 99)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002])
    as_weights = Rates(schedule(name="dexp"), 0.01, Fraction(30), LENGTH)
    assert as_weights.of("conv1", "bias", 2.0) == pytest.approx(2 * as_weights.base)
    assert rate_at(schedule(name="dexp", stairs=1), 0.01, 99) == 0.01


def test_poly_and_cosine() -> None:
    assert [rate_at(schedule(name="poly"), 10.0, e) for e in (0, 50, 90, 100, 120)] == pytest.approx(
        [10, 2.5, 0.1, 0, 0]
    )
    assert rate_at(schedule(name="poly", power=1), 10.0, 75) == pytest.approx(2.5)
    expected = [math.cos(math.pi * e / 200) ** 2 for e in (0, 25, 50, 75)]
    assert [rate_at(schedule(name="cosine"), 1.0, e) for e in (0, 25, 50, 75)] == pytest.approx(expected)
    assert rate_at(schedule(name="cosine"), 1.0, 100) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("role", ["weight", "bias"])
def test_warm_up_meets_the_schedule(role: Role) -> None:
    """A straight line to where the schedule is at the end of it, at every multiplier: no jump, and no float place."""
    chosen = schedule(name="poly", warmup_epochs=2.5, warmup_lr=0.1)
    target = 10 * (1 - 0.025) ** 2
    rates = [Rates(chosen, 10.0, exact(e), LENGTH).of(None, role, 2.0) / 2 for e in (0, 1.25, 2.4, 2.5, 3)]
    line = [0.1 + (target - 0.1) * part for part in (0, 0.5, 0.96, 1)]
    assert rates == pytest.approx([*line, 10 * 0.97**2])
    assert rate_at(schedule(name="constant", warmup_epochs=1), 0.5, 0) == 0
    frozen = schedule(name="manual", warmup_epochs=1, phases=[{"epoch": 0, "layers": ["a"], "weights": 0}])
    assert Rates(frozen, 1.0, Fraction(1, 2), LENGTH).of("a", "weight", 1.0) == 0
    assert Rates(frozen, 1.0, Fraction(1, 2), LENGTH).of("b", "weight", 1.0) == 0.5


def test_plateau_by_hand() -> None:
    """patience 2, threshold 0.01: accuracies, and how often the rate has dropped after each."""
    chosen = schedule(name="plateau", patience=2, threshold=0.01, factor=0.1)
    state = Plateau(chosen)
    seen = []
    for top1 in (0.30, 0.40, 0.405, 0.402, 0.39, 0.45, 0.45, 0.45, 0.46, 0.47):
        again = Plateau(chosen)  # a checkpoint between any two evaluations changes nothing
        again.restore(state.state())
        again.evaluated(top1)
        state.evaluated(top1)
        assert again.state() == state.state()
        seen.append(state.drops)
    assert seen == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert rate_at(chosen, 0.01, 5, drops=2) == pytest.approx(0.0001)


def test_the_length_counts_only_where_it_says_so() -> None:
    for name in ("constant", "steps", "manual", "plateau", "dexp", "poly", "cosine"):
        chosen = NET_145 if name == "manual" else schedule(name=name)
        rates = {Rates(chosen, 0.01, Fraction(30), Fraction(length)).base for length in (50, 100)}
        assert (len(rates) == 2) == chosen.needs_length


def test_only_what_matters_is_chosen() -> None:
    assert schedule(name="constant").chosen() == {"name": "constant", "warmup_epochs": 0.0, "warmup_lr": 0.0}
    assert {"factor", "at_epochs"} <= schedule().chosen().keys()
    assert "fall" not in schedule().chosen()
