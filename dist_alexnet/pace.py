"""What the count of steps says in a run: epochs, learning rates, and what is due."""

from fractions import Fraction

from dist_alexnet.config import Config
from dist_alexnet.job import Job, exact
from dist_alexnet.optim.schedules import Rates


class Pace:
    """Of one job."""

    def __init__(self, config: Config, job: Job) -> None:
        self._config, self._job = config, job

    def epochs(self, steps: int) -> Fraction:
        """Passes over the training set that `steps` steps make."""
        return Fraction(steps * self._config.data.batch_size, len(self._job.train))

    def rates(self, step: int, plateau_drops: int) -> Rates:
        """Learning rates of the step that brings the count to `step`."""
        return Rates(
            self._config.schedule,
            self._config.optimizer.lr,
            self.epochs(step - 1),
            self._job.epochs,
            plateau_drops,
        )

    def line_is_due(self, step: int) -> bool:
        """Whether a line of metrics is: by the settings, or because this is the last step."""
        return step % self._config.log.every_steps == 0 or step == self._job.total_steps

    def evaluation_is_due(self, step: int) -> bool:
        """Whether one is by the settings; the last step's comes anyway."""
        return self._due(step, self._config.evaluate.every_steps, self._config.evaluate.every_epochs)

    def save_is_due(self, step: int) -> bool:
        """Whether one is by steps or epochs; the last step's comes anyway."""
        return self._due(step, self._config.checkpoint.every_steps, self._config.checkpoint.every_epochs)

    def _due(self, step: int, every_steps: int | None, every_epochs: float | None) -> bool:
        """Whether this is a multiple of steps, or the first step past a multiple of epochs."""
        if every_steps is not None and step % every_steps == 0:
            return True
        if every_epochs is None:
            return False
        return self.epochs(step) // exact(every_epochs) > self.epochs(step - 1) // exact(every_epochs)
