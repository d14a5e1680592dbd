"""One place that is told the numbers of a run: the file first, then W&B, then the terminal."""

from collections.abc import Mapping

from dist_alexnet.track.console import Console
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.wandb_run import WandbRun


class Tracker:
    """`metrics` is the run's metrics.jsonl; ranks that do not write give None for it and for W&B."""

    def __init__(self, metrics: JsonLines | None, wandb: WandbRun | None, console: Console) -> None:
        self._metrics = metrics
        self._wandb = wandb
        self._console = console

    def metrics(self, step: int, samples: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write down what was measured after `step` steps and `samples` samples (epoch = samples / images an epoch).

        Raises OSError where metrics.jsonl cannot be written: it is the truth, a run without it is none.
        """
        if self._metrics is not None:
            self._metrics.append({"step": step, "samples": samples, "epoch": epoch, **values})
        if self._wandb is not None:
            self._wandb.log(step, samples, {"epoch": epoch, **values})
        self._console.metrics(step, epoch, values)

    def go_on(self, metrics: JsonLines | None) -> None:
        """Lines from here on are of another generation of this start: `metrics` writes them."""
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = metrics

    def sync(self) -> None:
        """Put the lines of metrics.jsonl on the disk."""
        if self._metrics is not None:
            self._metrics.sync()

    def message(self, text: str) -> None:
        """One line for the person at the terminal."""
        self._console.message(text)

    def close(self, exit_code: int = 0) -> None:
        """End of this start, well (0) or not."""
        self._console.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code)
