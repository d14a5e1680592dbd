"""One place that is told the numbers of a run: the file first, then W&B, then the terminal."""

from collections.abc import Mapping
from pathlib import Path

from dist_alexnet.track.console import Console
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.wandb_run import WandbRun

HANGS_S = 5.0  # for the last message of a process that hangs


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
            self._wandb.wake()
        self._console.metrics(step, epoch, values)

    def pictures(self, step: int, drawn: Mapping[str, Path]) -> None:
        """Show pictures, by name the PNG that holds each; they lie in the run folder already. After `metrics`."""
        if self._wandb is not None:
            self._wandb.pictures(step, drawn)

    def checkpoint(self, step: int, url: str) -> None:
        """A checkpoint has been committed there."""
        if self._wandb is not None:
            self._wandb.checkpoint(step, url)

    def alert(self, title: str, text: str) -> None:
        """A message to the run's owner, who may be far away."""
        if self._wandb is not None:
            self._wandb.alert(title, text)

    def hangs(self, title: str, text: str) -> None:
        """Alert, and end W&B's part within seconds: the process is about to be ended. Any thread may call it."""
        if self._wandb is not None:
            self._wandb.alert(title, text)
            self._wandb.finish(1, HANGS_S)

    def go_on(self, metrics: JsonLines | None, generation: int, step: int) -> None:
        """The run was rolled back to `step`: lines from here on are of this generation, `metrics` writes them."""
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = metrics
        if self._wandb is not None:
            self._wandb.go_on(generation, step)

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
