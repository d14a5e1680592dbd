"""What is done about a step that goes wrong: its loss or gradient is not finite, or its loss far above the last ones.

All ranks know the same numbers of a step before its update, so all come to the same verdict, on every layout.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from dist_alexnet.config import Divergence
from dist_alexnet.errors import DivergedError
from shards.order import data_steps

Action = Literal["stop", "skip", "rollback"]


@dataclass(frozen=True)
class Fault:
    """A step that went wrong, why in one sentence, and what is to be done about it."""

    step: int
    why: str
    action: Action


@dataclass(frozen=True)
class Skipped:
    """Positions [first, end), whole batches, that the run leaves out since it was rolled back."""

    first: int
    end: int
    why: str

    def __str__(self) -> str:
        return f"positions {self.first} to {self.end - 1} are skipped: {self.why}"


class RollbackNeeded(DivergedError):
    """The run has to go back to its last good checkpoint."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.why)
        self.fault = fault


class DivergenceGuard:
    """Of one run. What it counts travels in the checkpoint."""

    def __init__(self, settings: Divergence) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.spike.window_steps)
        self.skipped_steps = 0  # of the whole run
        self._in_a_row = 0
        self.rollbacks = 0
        self.skipped: list[Skipped] = []  # rising

    @property
    def may_skip(self) -> bool:
        """Whether the settings let a step be skipped."""
        spike = self._settings.spike
        return self._settings.not_finite == "skip" or (spike.factor is not None and spike.action == "skip")

    def fault(self, step: int, loss: float, is_finite: bool, spoilt: Sequence[tuple[str, str]] = ()) -> Fault | None:
        """What is wrong with a step, before its update; None: nothing.

        spoilt: (layer, tensor) of each gradient that is not finite, in the network's order.
        """
        if not is_finite:
            return Fault(step, f"step {step}: {_sentence(loss, spoilt)}", self._settings.not_finite)
        spike = self._settings.spike
        if spike.factor is not None and len(self._losses) == spike.window_steps:
            usual = median(self._losses)
            if loss > spike.factor * usual:
                what = f"more than {spike.factor:g} times {usual:.6g}, the median of {spike.window_steps} steps before"
                return Fault(step, f"step {step}: the loss is {loss:.6g}, {what}", spike.action)
        if spike.factor is not None:
            self._losses.append(loss)
        self._in_a_row = 0
        return None

    def weights_fault(self, step: int) -> Fault:
        """A weight is not finite after `step`: too late to skip it."""
        action: Action = "rollback" if self._settings.not_finite == "rollback" else "stop"
        return Fault(step, f"step {step}: a weight is not finite after it, so it is not saved", action)

    def act(self, fault: Fault) -> str:
        """Count a step that was left out, and say so. Raises RollbackNeeded, or DivergedError to stop."""
        if fault.action == "rollback":
            if self.rollbacks < self._settings.max_rollbacks:
                raise RollbackNeeded(fault)
            raise _used_up(fault, "max_rollbacks", self._settings.max_rollbacks)
        if fault.action == "stop":
            raise DivergedError(f"{fault.why}: {_ADVICE}, or set divergence to skip or to roll back, and start again")
        self.skipped_steps, self._in_a_row = self.skipped_steps + 1, self._in_a_row + 1
        if self._in_a_row > self._settings.max_skipped_in_a_row:
            raise _used_up(fault, "max_skipped_in_a_row", self._settings.max_skipped_in_a_row)
        if self.skipped_steps > self._settings.max_skipped_steps:
            raise _used_up(fault, "max_skipped_steps", self._settings.max_skipped_steps)
        return f"skipped {fault.why}"

    def rolled_back(self, fault: Fault, step: int, batch_size: int) -> Skipped:
        """The run stands at `step` again: what its steps saw from there on, to the one at fault, is not seen again."""
        first, last = self.data_steps(np.array([step, fault.step - 1]), batch_size).tolist()
        skipped = Skipped(first * batch_size, (last + 1) * batch_size, fault.why)
        # What begins later lies inside: the run has come back from further than before.
        self.skipped = [*(one for one in self.skipped if one.first < skipped.first), skipped]
        self.rollbacks += 1
        return skipped

    def data_steps(self, steps: np.ndarray, batch_size: int) -> np.ndarray:
        """Which global batch each of the steps reads (numbered from 0): int64 (steps,)."""
        return data_steps(steps, [(one.first // batch_size, one.end // batch_size) for one in self.skipped])

    def state(self) -> dict[str, Any]:
        """For the checkpoint, as plain values."""
        return {
            "losses": list(self._losses),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self._in_a_row,
            "rollbacks": self.rollbacks,
            "skipped": [asdict(one) for one in self.skipped],
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up what `state` gave; None: the start of a run. What this run has rolled back stays rolled back."""
        state = state or {}
        self._losses = deque(state.get("losses", ()), maxlen=self._settings.spike.window_steps)
        self.skipped_steps = int(state.get("skipped_steps", 0))
        self._in_a_row = int(state.get("skipped_in_a_row", 0))
        if not self.rollbacks:
            self.rollbacks = int(state.get("rollbacks", 0))
            self.skipped = [Skipped(**one) for one in state.get("skipped", ())]


_ADVICE = "start another run (run.name) with a lower optimizer.lr; the checkpoints of this one are good"


def _used_up(fault: Fault, key: str, limit: int) -> DivergedError:
    return DivergedError(f"{fault.why}, and divergence.{key} ({limit}) is used up: {_ADVICE}")


def _sentence(loss: float, spoilt: Sequence[tuple[str, str]]) -> str:
    """The loss, and where backward first met a gradient that is not finite: in the last layer that has one."""
    if not spoilt:
        return f"the loss is {loss:.6g}"
    layer = spoilt[-1][0]
    tensors = ", ".join(tensor for name, tensor in spoilt if name == layer)
    before = len({name for name, _ in spoilt}) - 1
    where = f"layer {layer} ({tensors})" + (f" and, behind it in backward, in {before} more" if before else "")
    return f"the gradient is not finite in {where}, the loss is {loss:.6g}"
