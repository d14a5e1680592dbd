"""Ranks that hang, by name of the fault; and a process that has imported everything and forks such ranks when asked.

python -m tests.ranks.hang_cases FAULT ARGUMENTS...   the command with a fault: [name, values ...]
python -m tests.ranks.hang_cases                      a line of JSON asks: {"start": ...} or {"poll": ...}; one answers
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from dist_alexnet import __main__ as command
from dist_alexnet import train
from dist_alexnet.checkpoint import store
from dist_alexnet.data.feed import Feed
from dist_alexnet.environment import tell_deepspeed
from dist_alexnet.guard import stragglers

Asked = dict[str, Any]


def _at_step(method: str, step: int, rank: int, act: Callable[[], Any]) -> AbstractContextManager[Any]:
    """`act` when this method of the run begins for the `step`-th time, on one rank."""
    before, calls = getattr(train._Run, method), list[int]()

    def acted(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == step and dist.get_rank() == rank:
            act()
        return before(self, *arguments)

    return patch.object(train._Run, method, acted)


def stopped(rank: int, step: int) -> AbstractContextManager[Any]:
    """The whole process stands still, as when its host has gone."""
    return _at_step("_update", step, rank, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def stuck(rank: int, step: int) -> AbstractContextManager[Any]:
    """Its own code does not end."""
    return _at_step("_update", step, rank, lambda: time.sleep(1000))


def lost_in_collectives(rank: int, step: int) -> AbstractContextManager[Any]:
    """It waits in a collective that no other rank is in."""
    return _at_step("_update", step, rank, dist.barrier)


def no_batch(rank: int, step: int) -> AbstractContextManager[Any]:
    """The storage never answers."""
    batches = train.training_batches

    def silent(feed: Feed) -> Generator[Any, None, None]:
        for number, batch in enumerate(feed, start=1):
            if number == step and dist.get_rank() == rank:
                time.sleep(1000)
            yield batch

    def all_silent(*arguments: Any, **named: Any) -> Feed:
        return Feed(lambda taken: silent(batches(*arguments, **named)))

    return patch.object(train, "training_batches", all_silent)


@contextmanager
def straggling(rank: int, load_s: float) -> Iterator[None]:
    """A rank takes longer to load than the others."""
    batches = train.training_batches

    def slower(feed: Feed) -> Generator[Any, None, None]:
        for batch in feed:
            time.sleep(load_s if dist.get_rank() == rank else 0.0)
            yield batch

    def all_slower(*arguments: Any, **named: Any) -> Feed:
        return Feed(lambda taken: slower(batches(*arguments, **named)))

    with patch.object(train, "training_batches", all_slower), patch.object(stragglers, "LEAST_S", 0.0):
        yield


@contextmanager
def slow(batch_s: float, save_s: float, asleep_s: float) -> Iterator[None]:
    """Each batch of an evaluation takes a while, so does a save, and every rank is stopped and woken; all is well."""
    after, save = train._Run._after_each_batch, store.save

    def slower(self: Any, batch: Any) -> None:
        time.sleep(batch_s)
        after(self, batch)

    def saved(*arguments: Any, **named: Any) -> Any:
        time.sleep(save_s)
        return save(*arguments, **named)

    def sleep() -> None:
        subprocess.Popen(["sh", "-c", f"sleep {asleep_s}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)

    with (
        patch.object(train._Run, "_after_each_batch", slower),
        patch.object(store, "save", saved),
        _at_step("_update", 3, 0, sleep),
        _at_step("_update", 3, 1, sleep),
    ):
        yield


FAULTS: dict[str, Callable[..., AbstractContextManager[Any]]] = {
    "none": nullcontext,
    **{fault.__name__: fault for fault in (stopped, stuck, lost_in_collectives, no_batch, straggling, slow)},
}


def faulty(fault: list[Any], arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    with FAULTS[fault[0]](*fault[1:]):
        command.main()


def forked(asked: Asked, rank: int) -> int:
    """A rank as its launcher would start it: a plain environment, its own session, its output in a file."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    said = os.open(f"{asked['said']}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), **asked["environ"])
    try:
        faulty(asked["fault"], asked["arguments"])
    finally:
        os._exit(70)


def nursery() -> None:
    """Serve stdin. What a fork needs is imported by now: a start costs a second in place of ten."""
    tell_deepspeed("cpu")
    import deepspeed  # noqa: F401

    torch.set_num_threads(1)
    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            pids = [forked(asked["start"], rank) for rank in range(asked["start"]["ranks"])]
            codes |= dict.fromkeys(pids)
            answer: Any = pids
        else:
            for pid in asked["poll"]:
                if codes[pid] is None:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
            answer = [codes[pid] for pid in asked["poll"]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        faulty(json.loads(sys.argv[1]), sys.argv[2:])
    else:
        nursery()
