"""A thread that ends a run which has stopped moving, and says which rank holds it up.

Whether to end is decided by each rank from itself: a run whose ranks wait for each other stops on all of them within a
step, so a rank that moves is never ended, whatever it hears of others or not. What the others say (guard/beats.py)
lengthens the patience where one of them may take longer, as in a storage's retries, and gives the name of the culprit.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from dist_alexnet.guard.beats import Awake, Beat, Beats, stands_at
from dist_alexnet.guard.heartbeat import Heartbeat
from dist_alexnet.guard.verdict import Heard, store_is_silent, verdict
from dist_alexnet.parallel.agree import on_every_rank, on_first_rank

PATIENCE = 4  # times hang_s: at the start, in the first step, and while a save is waited for
TICKS = 20  # of the watchdog in hang_s, at least; and one in LONGEST_TICK_S
LONGEST_TICK_S = 2.0
SILENT = 0.4  # of hang_s without a beat is silence; beats of others are read from half of hang_s on
DEADLINE_S = 45.0  # for all that is done before the process ends
LINGER_S = 2.0  # besides six ticks: for the others to write down where they stand


class Watchdog:
    """Watches one rank's heartbeat. A context that all ranks enter; within it this process may end with code 1.

    hang_s: None switches it off. report(sentence): writes down why the run ends, and says it, unless another rank has
    done so. needs(step): what a load of that step waits for.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        hang_s: float | None,
        host: str,
        report: Callable[[str], None],
        needs: Callable[[int], str] = lambda step: "",
    ) -> None:
        self._heartbeat, self._hang_s, self._host = heartbeat, hang_s, host
        self._report, self._needs_of = report, needs
        self.load_s = 0.0  # how long a rank may be in load or evaluate, where that is longer than hang_s
        self.hosts = [host]  # of all ranks, in order
        self._done = threading.Event()
        self._alarmed = False
        self._files: tuple[Path, str] | None = None
        self._beats: Beats | None = None
        self._heard: dict[int, Heard] = {}

    def __enter__(self) -> "Watchdog":
        self.hosts = on_every_rank(lambda: self._host)
        if self._hang_s is None:
            return self
        self._rank, self._main = dist.get_rank(), threading.get_ident()
        self._tick_s = min(max(0.1, self._hang_s / TICKS), LONGEST_TICK_S)
        self._moves, self._moved_s, self._number = -1, 0.0, 0
        self._clock = Awake(self._tick_s)
        self._heard_at_s: dict[int, float] = {}
        self._answered = (0, 0.0)  # answers of the store, and when the last came
        if len(self.hosts) > 1:
            prefix = on_first_rank(lambda: f"watchdog/{os.urandom(8).hex()}")
            self._beats = Beats(prefix, self._rank, len(self.hosts), self._tick_s)
            self._beats.start(self._beat, self._wants_to_hear)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer. Where the alarm has been raised, this does not return: the process is being ended."""
        self._done.set()
        if self._beats is not None:
            self._beats.close()
        while self._alarmed:
            self._sleep(1.0)

    def writes_to(self, folder: Path, generation: int) -> None:
        """Where the stacks go, once the run folder is known to be this run's."""
        self._files = (folder / "logs", f"g{generation:04d}-rank-{dist.get_rank():05d}")

    # ---- every tick -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._done.wait(self._tick_s):
            now_s = self._clock.tick()
            if self._heartbeat.moves != self._moves:
                self._moves, self._moved_s = self._heartbeat.moves, now_s
            self._listen(now_s)
            if self._in_s() > self._patience_s() or self._others_alarmed():
                self._alarmed = True
                break
        if self._alarmed and not self._done.is_set():
            self._alarm()
        self._alarmed = False

    def _in_s(self) -> float:
        return self._clock.now_s - self._moved_s

    def _wants_to_hear(self) -> bool:
        assert self._hang_s is not None
        return self._in_s() > self._hang_s / 2

    def _may_s(self) -> float:
        """How long this rank may be where it is."""
        assert self._hang_s is not None
        phase = self._heartbeat.phase
        longer_s = self.load_s if phase in ("load", "evaluate") else 0.0
        slow = phase in ("start", "save") or not self._heartbeat.under_way
        return max(longer_s, self._hang_s * (PATIENCE if slow else 1))

    def _patience_s(self) -> float:
        """The longest that any rank may take which is not silent."""
        others = (one.beat.may_s for one in self._heard.values() if not self._is_silent(one))
        return max((self._may_s(), *others))

    def _is_silent(self, one: Heard) -> bool:
        assert self._hang_s is not None
        return one.silent_s > SILENT * self._hang_s

    def _others_alarmed(self) -> bool:
        return any(one.beat.alarmed and not self._is_silent(one) for one in self._heard.values())

    def _listen(self, now_s: float) -> None:
        """Bring what is known of the others up to date."""
        if self._beats is None or not self._wants_to_hear():
            self._heard, self._heard_at_s, self._answered = {}, {}, (0, now_s)
            return
        if self._beats.answers != self._answered[0]:
            self._answered = (self._beats.answers, now_s)
        for beat in self._beats.heard if self._answered[0] else ():
            known = self._heard.get(beat.rank)
            if known is None or known.beat.number != beat.number:
                self._heard_at_s[beat.rank] = now_s
            self._heard[beat.rank] = Heard(beat, now_s - self._heard_at_s[beat.rank])

    def _beat(self) -> Beat:
        """What this rank says of itself; where it stands and what it waits for only when somebody will ask."""
        heart, self._number = self._heartbeat, self._number + 1
        place, inside, needs = "", False, ""
        if self._wants_to_hear():
            place, inside = stands_at(self._main)
            needs = self._needs(heart.step) if heart.phase == "load" else ""
        return Beat(
            self._rank,
            self._host,
            self._number,
            heart.phase,
            heart.step,
            heart.phases,
            round(self._in_s(), 1),
            self._may_s(),
            needs,
            place,
            inside,
            self._alarmed,
        )

    def _needs(self, step: int) -> str:
        try:
            return self._needs_of(step)
        except Exception:  # a name for a person; nothing may hang on it
            return ""

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _alarm(self) -> None:
        """Say why, write down where every thread stands, and end this process. Runs in the watchdog's thread.

        The main thread may be inside C code for ever, so no exception would reach it.
        """
        deadline = threading.Timer(DEADLINE_S, os._exit, (1,))  # whatever may hang here, too, such as the run folder
        deadline.daemon = True
        deadline.start()
        try:
            self._write_stacks()
            self._sleep(2 * self._tick_s)  # so that the others have told where they stand
            self._listen(self._clock.tick())
            if self._first_left() != self._rank:
                self._sleep(LINGER_S)  # whoever is first writes the cause; if it does not, we do
            self._report(f"no progress for {self._in_s():.0f} s: {self._sentence()}")
            self._write_flight_record()
            self._linger()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _sentence(self) -> str:
        assert self._hang_s is not None
        mine = self._beat()
        silent_s = self._clock.tick() - self._answered[1]
        if self._beats is not None and silent_s > SILENT * self._hang_s:
            return store_is_silent(self.hosts[0], silent_s, mine)
        others = [one for rank, one in sorted(self._heard.items()) if rank != self._rank]
        return verdict(sorted([*others, Heard(mine, 0.0)], key=lambda one: one.beat.rank), SILENT * self._hang_s)

    def _first_left(self) -> int:
        """The lowest rank that is not silent: it speaks."""
        others = [rank for rank, one in self._heard.items() if not self._is_silent(one)]
        return min([self._rank, *others])

    def _linger(self) -> None:
        """Wait for the others' stacks: they lose their connections when this process ends."""
        for _ in range(6 + round(LINGER_S / self._tick_s)):
            self._listen(self._clock.tick())
            left = [one for one in self._heard.values() if one.beat.rank != self._rank and not self._is_silent(one)]
            if all(one.beat.alarmed for one in left):
                return
            self._sleep(self._tick_s)

    def _write_stacks(self) -> None:
        if self._files is None:
            return
        folder, name = self._files
        try:
            folder.mkdir(exist_ok=True)
            with (folder / f"stacks-{name}.txt").open("w") as file:
                file.write(f"{self._beat()}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"error: rank {self._rank}: its stacks cannot be written: {error}", file=sys.stderr, flush=True)

    def _write_flight_record(self) -> None:
        """torch's list of the last collectives. It may ask NCCL, which may hang, too: for some seconds only."""
        if self._files is not None:
            writer = threading.Thread(target=_write_flight_record, args=self._files, daemon=True)
            writer.start()
            writer.join(LINGER_S)

    def _sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)


def _write_flight_record(folder: Path, name: str) -> None:
    """<folder>/flight-<name>.json, as torch's own JSON; torch's other form is a pickle."""
    recorder: Any = sys.modules.get("torch._C._distributed_c10d")
    for function in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):  # of NCCL, of gloo; each where torch has it
        dump = getattr(recorder, function, None)
        if dump is not None:
            record: bytes = dump()
            if record:
                kind = "nccl" if "nccl" in function else "cpu"
                (folder / f"flight-{name}-{kind}.json").write_bytes(record)
