"""How ranks hear of each other while they hang: each leaves what it does in the store of the process group.

The store is where ranks met at the start: a server in rank 0, or in the agent of torchrun. Every rank talks to it over
a connection of its own, in a thread of its own, because a server that is stopped holds whoever asks it for ever.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

PACKAGE = Path(__file__).parents[1]
# Where collectives are waited for whose waiting itself shows no frame of torch's.
ONLY_COLLECTIVES = ("guard/requests.py", "parallel/collectives.py", "parallel/agree.py", "parallel/buckets.py")


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself. Durations are by its own clock: those of two hosts are never compared."""

    rank: int
    host: str
    number: int  # of this beat
    phase: str
    step: int
    phases: int  # entered so far: who has fewer is behind
    in_s: float  # since it has moved
    may_s: float  # how long it may stay there
    waits_for: str = ""  # what it needs from outside, such as shards
    stands_at: str = ""  # the line of code
    in_collective: bool = False
    alarmed: bool = False


class Beats:
    """The exchange over the store. `prefix`: agreed by all ranks, and new for every use."""

    def __init__(self, prefix: str, rank: int, world_size: int, interval_s: float) -> None:
        self._rank, self._interval_s = rank, interval_s
        self._keys = [str(number) for number in range(world_size)]
        store = _get_default_store().clone()  # type: ignore[attr-defined]
        self._store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        self._done = threading.Event()
        self.heard: Sequence[Beat] = ()  # in order of rank, as last read
        self.answers = 0  # times that the store has answered with all beats

    def start(self, beat: Callable[[], Beat], wanted: Callable[[], bool]) -> None:
        """Tell `beat()` at every interval, and read those of all ranks while `wanted()`."""
        threading.Thread(target=self._run, args=(beat, wanted), name="beats", daemon=True).start()

    def close(self) -> None:
        self._done.set()

    def _run(self, beat: Callable[[], Beat], wanted: Callable[[], bool]) -> None:
        while not self._done.is_set():
            try:
                self._store.set(self._keys[self._rank], json.dumps(asdict(beat())))
                # Read in trouble only: N ranks that read N beats all the time would keep the store busy for nothing.
                if wanted() and self._store.check(self._keys):
                    self.heard = [Beat(**json.loads(text)) for text in self._store.multi_get(self._keys)]
                    self.answers += 1
            except RuntimeError:  # the store is gone for good, as where rank 0 has ended: no second try, which torch
                return  # would greet with a page on stderr; who needs its answers notices that none come
            self._done.wait(self._interval_s)


class Awake:
    """A clock that stands still while this process does: a host that slept must not think that others were silent."""

    def __init__(self, tick_s: float) -> None:
        self._longest_s, self._last_s, self.now_s = 2 * tick_s, time.monotonic(), 0.0

    def tick(self) -> float:
        """Seconds of being awake; to be called at every tick."""
        now_s = time.monotonic()
        self.now_s += min(now_s - self._last_s, self._longest_s)
        self._last_s = now_s
        return self.now_s


def stands_at(thread_ident: int | None) -> tuple[str, bool]:
    """(line of code that the thread of the training is at, whether that is inside a collective).

    While it waits for the thread that writes a checkpoint, that thread is meant.
    """
    frames = sys._current_frames()
    stack = _stack(frames.get(thread_ident or 0))
    if any(_is_in_saver(frame, "wait") for frame in stack):
        writers = [_stack(frame) for frame in frames.values()]
        stack = next((one for one in writers if any(_is_in_saver(frame, "_write") for frame in one)), stack)
    at = next((frame for frame in stack if PACKAGE in Path(frame.f_code.co_filename).parents), None)
    inside = any(frame.f_code.co_filename.endswith("/torch/distributed/distributed_c10d.py") for frame in stack)
    if at is None:
        return "", inside
    path = Path(at.f_code.co_filename).relative_to(PACKAGE)
    line = f"{PACKAGE.name}/{path}:{at.f_lineno} ({at.f_code.co_name})"
    return line, inside or path.as_posix() in ONLY_COLLECTIVES


def _stack(frame: FrameType | None) -> list[FrameType]:
    """Innermost first."""
    stack = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    return stack


def _is_in_saver(frame: FrameType, function: str) -> bool:
    return frame.f_code.co_name == function and frame.f_code.co_filename.endswith("/checkpoint/saver.py")
