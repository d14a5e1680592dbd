"""Learning rates as functions of the place on the endless line of samples: the same at every batch cut, on every rank.

A place is an exact epoch: samples seen before the step / samples in an epoch, as a Fraction. Settings are taken as they
were written: 8.4 is 42/5, and not the float below it.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from dist_alexnet.config import Schedule

Role = Literal["weight", "bias"]


@dataclass(frozen=True)
class Rates:
    """The learning rates of one step.

    epoch: of its first sample. length: of the whole run, in epochs. drops: how often `plateau` has dropped so far.
    """

    schedule: Schedule
    lr: float
    epoch: Fraction
    length: Fraction
    drops: int = 0

    @property
    def base(self) -> float:
        """The rate of weights that no phase names and no network multiplies."""
        return self.of(None, "weight", 1.0)

    def of(self, layer: str | None, role: Role, multiplier: float) -> float:
        """The rate of a layer's weights or biases, of which the network asks `multiplier` times the common one.

        During warm-up it goes straight from warmup_lr (times the multiplier) to where the schedule is at its end; what
        is to be frozen then is frozen from the start.
        """
        end = Fraction(str(self.schedule.warmup_epochs))
        if self.epoch >= end:
            return self._planned(self.epoch, layer, role, multiplier)
        target = self._planned(end, layer, role, multiplier)
        if target == 0:
            return 0.0
        start = self.schedule.warmup_lr * multiplier
        return start + (target - start) * float(self.epoch / end)

    def _planned(self, epoch: Fraction, layer: str | None, role: Role, multiplier: float) -> float:
        """The schedule without its warm-up."""
        said = _said(self.schedule, epoch, layer, role)
        return self.lr * self._part(epoch, role) * multiplier if said is None else said

    def _part(self, epoch: Fraction, role: Role) -> float:
        """What is left of the rate."""
        schedule = self.schedule
        progress = min(epoch / self.length, Fraction(1)) if self.length else Fraction(0)
        if schedule.name == "steps":
            drops = sum(epoch >= Fraction(str(at)) for at in schedule.at_epochs)
            return float(schedule.factor**drops)
        if schedule.name == "plateau":
            return float(schedule.factor**self.drops)
        if schedule.name == "dexp":
            return _stairs(schedule, progress, role)
        if schedule.name == "poly":
            return float(float(1 - progress) ** schedule.power)
        if schedule.name == "cosine":
            return (1 + math.cos(math.pi * float(progress))) / 2
        return 1.0


def _said(schedule: Schedule, epoch: Fraction, layer: str | None, role: Role) -> float | None:
    """The rate that a manual schedule's phases give; None where they have given none yet.

    What a phase says of a layer by name holds until the next that names it: a phase without names means the rest.
    """
    by_name, for_all = None, None
    for phase in schedule.phases:
        rate = phase.weights if role == "weight" else phase.biases
        if rate is None or epoch < Fraction(str(phase.epoch)):
            continue
        if not phase.layers:
            for_all = rate
        elif layer in phase.layers:
            by_name = rate
    return for_all if by_name is None else by_name


def _stairs(schedule: Schedule, progress: Fraction, role: Role) -> float:
    """cuda-convnet2's `dexp`: stairs of equal length and equal ratio; the last one is 1 / fall of the first."""
    fall, stairs = schedule.fall, schedule.stairs
    if role == "bias":
        fall, stairs = schedule.bias_fall or fall, schedule.bias_stairs or stairs
    stair = min(math.floor(progress * stairs), stairs - 1)
    return float(fall ** (-stair / max(1, stairs - 1)))


class Plateau:
    """When the validation error stands still: a state beside the line, so it goes into the checkpoint."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.best_error: float | None = None
        self.stale, self.drops = 0, 0  # evaluations since the best one or the last drop; drops

    def evaluated(self, top1: float) -> None:
        """Note the top-1 accuracy of an evaluation."""
        error = 1 - top1
        if self.best_error is None or self.best_error - error > self.schedule.threshold:
            self.best_error, self.stale = error, 0
            return
        self.stale += 1
        if self.stale == self.schedule.patience:
            self.stale, self.drops = 0, self.drops + 1

    def state(self) -> dict[str, Any]:
        return {"best_error": self.best_error, "stale": self.stale, "drops": self.drops}

    def restore(self, state: dict[str, Any]) -> None:
        self.best_error, self.stale, self.drops = state["best_error"], int(state["stale"]), int(state["drops"])
