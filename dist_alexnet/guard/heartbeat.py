"""What a rank is doing, as its other threads may look it up at any time, and where its seconds go.

Entering a phase costs about half a microsecond: some assignments, no lock, no clock that is shared, no collective.
"""

import time
from typing import Literal, get_args

# log: what is due after a step, beside saves and evaluations.
Phase = Literal["start", "load", "forward", "backward", "reduce", "step", "log", "save", "evaluate"]
OF_A_STEP: tuple[Phase, ...] = ("load", "forward", "backward", "reduce", "step")


class Heartbeat:
    """Of one rank. The thread that trains writes it, others read it.

    Every rank of a run passes through the same phases in the same order, so the number of phases entered says who is
    behind.
    """

    def __init__(self) -> None:
        self.phase: Phase = "start"
        self.step = 0  # the step under way
        self.phases = 0  # entered so far
        self.moves = 0  # these, and pieces of a phase that are done
        self.under_way = False  # whether a step has been done: the first one waits for compilers and connections
        self._seconds: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)
        self._entered_s = time.perf_counter()

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """This rank is now in `phase` (of `step`, if that is another one than before)."""
        now_s = time.perf_counter()
        self._seconds[self.phase] += now_s - self._entered_s
        self.phase, self._entered_s = phase, now_s
        if step is not None:
            self.step = step
        self.phases += 1
        self.moves += 1

    def moved(self) -> None:
        """A piece of the phase is done, such as a tensor of a save: not as many on every rank."""
        self.moves += 1

    def take_seconds(self) -> list[float]:
        """Seconds in each phase of OF_A_STEP since the last call."""
        taken = [self._seconds[phase] for phase in OF_A_STEP]
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken
