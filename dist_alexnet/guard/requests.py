"""What is asked of a run from outside, to stop or to save, and how all ranks come to know it at the same step.

A request that any rank sees is everybody's one step later: the agreement of a step travels while that step is computed,
so no step waits for it. Asked to stop, a run saves and ends; whoever started it starts it again.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from dist_alexnet.errors import StopRequested

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # W&B's stop button comes as SIGINT
CAUSES = (
    "",
    *(number.name for number in SIGNALS),
    "the file stop in the run folder",
    "run.max_minutes",
    "the end of the job's time",
)
STOP_FILE = "stop"
LOOK_S = 1.0  # between two looks at the file
SAME_S = 2.0  # the same signal once more is the same request: Slurm tells all of a job, and torchrun its ranks again
MARGIN_S = 30.0  # beside twice the time of a save, before the end of the job's time


class Requests:
    """Collects requests on this rank and agrees on them. A context: the handlers of signals are the run's within it.

    lasts_s: run.max_minutes; job_ends_at_s: when the job's time is over, of time.time(). save_every_s: None, or after
    how long without a save one is due. Only the second hangs on the host's clock, which somebody may set.
    """

    def __init__(
        self,
        run_folder: Path,
        lasts_s: float | None = None,
        job_ends_at_s: float | None = None,
        save_every_s: float | None = None,
    ) -> None:
        self._file = run_folder / STOP_FILE
        self._lasts_s, self._job_ends_at_s, self._save_every_s = lasts_s, job_ends_at_s, save_every_s
        self._began_s = self._saved_at_s = time.monotonic()
        self._cause, self._looked_at_s = 0, self._began_s
        self._handlers: dict[int, Any] = {}
        self._heard = (0, 0.0)  # the first signal, and when
        self._flags = torch.zeros(2, dtype=torch.int32)  # cause of a stop, whether a save is due
        self._work: dist.Work | None = None
        self.save_s = 0.0  # how long a save takes, as measured

    def __enter__(self) -> "Requests":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def look(self) -> None:
        """Raise StopRequested where some rank knew of a request when this was called last. All ranks call it, equally
        often."""
        self._arrive()
        if self._flags[0]:
            raise StopRequested(CAUSES[int(self._flags[0])])
        self._flags[0], self._flags[1] = self._seen(), self._save_is_due()
        self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, async_op=True)

    def save_is_due(self) -> bool:
        """Whether some rank's clock asked for a save when `look` was called last. The same on all ranks."""
        if self._save_every_s is None:
            return False
        self._arrive()
        return bool(self._flags[1])

    def saved(self) -> None:
        """A save has begun: the next one is due that much later."""
        self._saved_at_s = time.monotonic()
        if self._save_every_s is not None:
            self._arrive()
            self._flags[1] = 0

    def _arrive(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None

    def _save_is_due(self) -> bool:
        return self._save_every_s is not None and time.monotonic() - self._saved_at_s >= self._save_every_s

    def _seen(self) -> int:
        """The cause that this rank knows of, as its number."""
        now_s = time.monotonic()
        if self._cause:
            return self._cause
        if self._lasts_s is not None and now_s - self._began_s >= self._lasts_s:
            self._cause = CAUSES.index("run.max_minutes")
        elif self._job_ends_at_s is not None and time.time() >= self._job_ends_at_s - MARGIN_S - 2 * self.save_s:
            self._cause = CAUSES.index("the end of the job's time")
        elif dist.get_rank() == 0 and now_s - self._looked_at_s >= LOOK_S:
            self._looked_at_s = now_s
            if self._file.exists():
                self._cause = CAUSES.index("the file stop in the run folder")
        return self._cause

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if number == self._heard[0] and now_s - self._heard[1] < SAME_S:
            return
        if self._cause in range(1, 1 + len(SIGNALS)):
            os._exit(1)  # asked twice: at once; a checkpoint counts only once it is whole, so none is hurt
        self._cause, self._heard = CAUSES.index(signal.Signals(number).name), (number, now_s)
