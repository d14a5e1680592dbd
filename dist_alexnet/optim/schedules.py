"""Learning rate as a function of the place on the endless line of samples: the same at every batch cut."""

from dist_alexnet.config import Schedule


def rate_at(schedule: Schedule, lr: float, epoch: float) -> float:
    """The learning rate of the step whose first sample stands at `epoch` (samples seen / samples in an epoch)."""
    if schedule.name == "constant":
        return lr
    drops = sum(epoch >= at for at in schedule.at_epochs)
    return float(lr * schedule.factor**drops)
