"""A run between two faults, and the hands that a fault has: start it, wait for a moment, strike, see how it ends."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from dist_alexnet.checkpoint.commit import COMMIT
from dist_alexnet.config import Config
from dist_alexnet.drill.processes import Start, end_all, kill, processes_with
from dist_alexnet.drill.shards_at_hand import LinkedShards
from dist_alexnet.drill.watch import Watch
from dist_alexnet.errors import DrillError

LOOK_S = 0.002
MOMENT_S = 300.0  # how long a start may take to come to the moment that is waited for
END_S = 120.0  # how long a start may take to end after a fault


class Over(Exception):
    """The run was done before the fault could strike."""


class Missed(Exception):
    """The moment had passed when the fault struck: what it hit was another one."""


@dataclass(frozen=True)
class Struck:
    """One fault as it struck."""

    fault: str
    run: str
    generation: int  # of the start that it ended or met
    what: str  # in words
    detected_s: float | None  # until all of the start had ended, or it said so; None: by nobody
    damaged: bool = False  # a checkpoint that this start had to pass over
    trouble: str | None = None  # what should not have happened


@dataclass
class Scene:
    """One run of the drill. `train` is the command up to the overrides."""

    run: str
    folder: Path
    config: Config
    train: Callable[[int], list[str]]
    ranks: int
    layouts: Sequence[tuple[int, tuple[str, ...]]]
    shards: LinkedShards | None
    mark: str
    logs: Path
    random: Random = field(default_factory=Random)
    once: tuple[str, ...] = ()  # overrides of the next start alone
    start_s: float = 0.0  # from a command to its first step, as last seen

    @contextmanager
    def started(
        self, overrides: Sequence[str] = (), ranks: int | None = None, extra: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Start, Watch]]:
        """The command runs inside; afterwards none of its processes does."""
        watch = Watch(self.folder)
        number = 1 + len(list(self.logs.glob(f"{self.run}-*.log")))
        log = self.logs / f"{self.run}-{number:04d}.log"
        settings = [f"run.name={self.run}", *self.once, *overrides]
        self.once = ()
        start = Start([*self.train(ranks or self.ranks), *settings], log, self.mark, extra or {})
        try:
            yield start, watch
        finally:
            end_all(self.mark, start)

    def until(self, start: Start, watch: Watch, check: Callable[[], bool], limit_s: float = MOMENT_S) -> None:
        """Wait for a moment. Raises Over where the run is done first, DrillError where it ends badly or takes long."""
        began_s = time.monotonic()
        while not check():
            if not start.running and not check():
                if self.outcome() == 0:
                    raise Over
                raise DrillError(f"{self.run} ended by itself before a fault struck: see {start.log}")
            if time.monotonic() - began_s > limit_s:
                raise DrillError(f"{self.run} did not come to where a fault strikes in {limit_s:g} s: see {start.log}")
            time.sleep(LOOK_S)

    def until_step(self, start: Start, watch: Watch, new_steps: int | None = None) -> int:
        """Wait until this start has done so many steps (drawn, without); returns the last of them."""
        began_s = time.monotonic()
        self.until(start, watch, lambda: len(watch.trained()) >= 1)
        self.start_s = time.monotonic() - began_s
        if new_steps is None:
            new_steps = self.random.randint(1, 2 * (self.config.checkpoint.every_steps or 1))
        self.until(start, watch, lambda: len(watch.trained()) >= new_steps)
        return watch.trained()[-1]

    def until_saved(self, count: int) -> None:
        """Have `count` committed checkpoints in the run: start it for that where there are fewer."""
        if len(self.checkpoints()) >= count:
            return
        with self.started() as (start, watch):
            self.until(start, watch, lambda: len(self.checkpoints()) >= count)

    def checkpoints(self) -> list[Path]:
        """Committed, newest first."""
        found = [path.parent for path in self.folder.glob(f"checkpoints/step-*/g*/{COMMIT}")]
        return sorted(found, key=lambda at: (int(at.parent.name[5:]), int(at.name[1:])), reverse=True)

    def outcome(self) -> int | None:
        """The exit code that the run wrote down for its newest start; None where it could not."""
        try:
            return int(json.loads((self.folder / "outcome.json").read_text())["code"])
        except (OSError, ValueError, KeyError):
            return None

    def a_rank(self, start: Start) -> tuple[int, int]:
        """(rank, pid) of one rank on this host, drawn."""
        ranks = start.ranks()
        if not ranks:
            raise DrillError(f"no rank of {self.run} runs on this host: start the drill where ranks run, or see --only")
        return self.random.choice(sorted(ranks.items()))

    def strike_rank(self, start: Start, watch: Watch, fault: str, where: str) -> Struck:
        """SIGKILL one rank, and see the others end."""
        rank, pid = self.a_rank(start)
        kill(pid, signal.SIGKILL)
        return self.ended(start, watch, fault, f"SIGKILL of rank {rank} {where}")

    def ended(self, start: Start, watch: Watch, fault: str, what: str) -> Struck:
        """Wait for the end that a fault must bring, from now on."""
        began_s = time.monotonic()
        gone = start.wait(END_S)
        took_s = time.monotonic() - began_s
        struck = Struck(fault, self.run, watch.generation() or watch.before, what, took_s)
        if gone:
            return struck
        left = len(processes_with(self.mark))
        return replace(struck, detected_s=None, trouble=f"{left} processes were still there after {END_S:g} s")
