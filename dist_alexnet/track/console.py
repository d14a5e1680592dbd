"""What a person at the terminal sees: a progress bar where there is one, plain lines otherwise, only from rank 0."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Console(Protocol):
    """Where the numbers of a run are shown."""

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Show the values of one step: train/* on the running line, val/* on a line that stays."""

    def message(self, text: str) -> None:
        """One line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was; a second call does nothing."""


def open_console(rank: int, total_steps: int, step: int = 0, stream: TextIO | None = None) -> Console:
    """The console of this rank for a run of `total_steps`, of which `step` are done. `stream` is stdout by default."""
    if rank != 0:
        return NullConsole()
    stream = stream or sys.stdout
    if stream.isatty():
        return BarConsole(total_steps, step, stream)
    return PlainConsole(total_steps, stream)


class NullConsole:
    """The other ranks say nothing."""

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainConsole:
    """One line a log step: for files, pipes and batch systems."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        self._total_steps = total_steps
        self._stream = stream

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        place = f"step {step}/{self._total_steps}  epoch {epoch:.2f}"
        train, validation = train_text(values), validation_text(values)
        if train:
            self.message(f"{place}  {train}")
        if validation:
            self.message(f"{place}  {validation}")

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class BarConsole:
    """A progress bar with the time left; messages and evaluations scroll above it."""

    def __init__(self, total_steps: int, step: int, stream: TextIO) -> None:
        self._total_steps = total_steps
        self._progress, self._task = _bar(total_steps, step, stream)
        self._progress.start()

    def metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        train, validation = train_text(values, short=True), validation_text(values)
        self._progress.update(self._task, completed=step)
        if train:
            self._progress.update(self._task, text=train)
        if validation:
            self.message(f"step {step}/{self._total_steps}  epoch {epoch:.2f}  {validation}")

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def train_text(values: Mapping[str, float], *, short: bool = False) -> str:
    """The training numbers in words, `short` where a bar needs the room; "" where there are none."""
    parts = [
        _part("loss {:.4f}", values.get("train/loss")),
        _part("top1 {:.3f}", values.get("train/top1")),
        _part("lr {:.4g}", None if short else values.get("optim/lr")),
        _part("{:.0f} images/s", values.get("speed/images_per_s")),
    ]
    return "  ".join(part for part in parts if part) if "train/loss" in values else ""


def validation_text(values: Mapping[str, float]) -> str:
    """The evaluation's numbers in words; "" where there are none."""
    parts = [
        _part("loss {:.4f}", values.get("val/loss")),
        _part("top1 {:.4f}", values.get("val/top1")),
        _part("top5 {:.4f}", values.get("val/top5")),
    ]
    text = "  ".join(part for part in parts if part)
    return f"validation  {text}" if text else ""


def _part(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


def _bar(total_steps: int, step: int, stream: TextIO) -> "tuple[Progress, TaskID]":
    # here and not above: only a terminal pays for rich
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=RichConsole(file=stream),
        expand=True,
    )
    return progress, progress.add_task("train", total=total_steps, completed=step, text="")
