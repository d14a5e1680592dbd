"""Seconds a step by phase, over all ranks, and which rank is slower than the others.

The phases are timed on the host. On GPUs, whose work is queued, the time of a kernel falls where the host waits for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
import torch.distributed as dist

from dist_alexnet.guard.heartbeat import OF_A_STEP, Heartbeat

FACTOR = 1.5  # times the median of the other ranks
LEAST_PART = 0.1  # of a step: below that a phase is too short to matter
LEAST_S = 5.0  # of training: a shorter interval says little
WORK = ("load", "forward", "backward", "step")  # reduce is waiting for others


@dataclass(frozen=True)
class Slow:
    """A rank that is slow in a phase, in seconds a step."""

    rank: int
    phase: str
    seconds: float
    others_s: float

    def sentence(self, host: str) -> str:
        return (
            f"rank {self.rank} ({host}) is slow: {self.phase} {self.seconds:.3g} s a step, others {self.others_s:.3g}"
        )


def find_slow(table_s: Sequence[Sequence[float]]) -> Slow | None:
    """The slowest rank of the first phase in which one is. table_s: seconds a step, [rank][phase of OF_A_STEP].

    The first, because whoever waits for a slow rank looks slow in a later phase.
    """
    if len(table_s) < 2:
        return None
    step_s = mean(sum(row) for row in table_s)
    for phase in WORK:
        column = [row[OF_A_STEP.index(phase)] for row in table_s]
        seconds = max(column)
        rank = column.index(seconds)
        others_s = median(column[:rank] + column[rank + 1 :])
        if seconds > FACTOR * others_s and seconds - others_s > LEAST_PART * step_s:
            return Slow(rank, phase, seconds, others_s)
    return None


class Stragglers:
    """Of one start. All ranks call `measure` at the same steps."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._warm = False
        self._named: tuple[int, str] | None = None
        self.table_s: list[list[float]] = []  # [rank][phase of OF_A_STEP], a step, of the last measurement
        self.beside: list[list[float]] = []  # [rank][..], what else the ranks had to tell in that
        self.slow: Slow | None = None  # where it has something new to say

    def measure(self, steps: int, beside: Sequence[float] = ()) -> dict[str, float]:
        """The last `steps` steps: means over ranks, and the largest. One small all-gather, which carries `beside`."""
        own_s = [seconds / max(1, steps) for seconds in self._heartbeat.take_seconds()]
        mine = torch.tensor([*own_s, *beside], dtype=torch.float64)
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        rows = [row.tolist() for row in gathered]
        self.table_s, self.beside = [row[: len(own_s)] for row in rows], [row[len(own_s) :] for row in rows]
        columns = list(zip(*self.table_s, strict=True))
        values = {f"time/{phase}_s": mean(column) for phase, column in zip(OF_A_STEP, columns, strict=True)}
        values["time/load_max_s"] = max(columns[OF_A_STEP.index("load")])
        values["time/forward_max_s"] = max(columns[OF_A_STEP.index("forward")])
        self.slow = None
        if self._warm and steps * sum(map(mean, columns)) >= LEAST_S:
            found = find_slow(self.table_s)
            name = None if found is None else (found.rank, found.phase)
            self.slow = found if name != self._named else None
            self._named = name
            if found is not None:
                values["time/slowest_rank"] = float(found.rank)
        self._warm = True  # the first interval also holds what is done once
        return values
