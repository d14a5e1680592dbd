"""Learning rate as a function of the place on the endless line of samples: the same at every batch cut."""

from fractions import Fraction

from dist_alexnet.config import Schedule


def rate_at(schedule: Schedule, lr: float, epoch: Fraction) -> float:
    """The learning rate of the step whose first sample stands at `epoch` (samples seen / samples in an epoch)."""
    if schedule.name == "constant":
        return lr
    drops = sum(epoch >= Fraction(str(at)) for at in schedule.at_epochs)  # 8.4 as written, not the float below it
    return float(lr * schedule.factor**drops)
