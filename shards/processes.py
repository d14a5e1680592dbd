"""Work spread over processes that end with the one that asked for it."""

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from shards.errors import DistAlexnetError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """How many processes this one may keep busy."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each_done(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """work(task) of every task, each as soon as it is there: with one worker here and in order, else in `workers` clean
    processes. `work` and tasks travel to them; tasks are made only a little ahead. The first error ends it all, after
    the pieces of work under way. DistAlexnetError where a process is killed.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    # From a clean server process: a fork of this one would carry its threads along.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(),)) as pool:
        left = iter(tasks)
        running: set[Future[Result]] = {pool.submit(work, task) for task in islice(left, workers + 1)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {pool.submit(work, task) for task in islice(left, len(done))}
        except BrokenProcessPool as exc:
            raise DistAlexnetError(
                "a process that wrote shards was killed, perhaps for want of memory: start again with fewer --workers; "
                "what is finished is kept"
            ) from exc
        finally:
            pool.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent is the one to say so
    end_with(parent)


def end_with(pid: int) -> None:
    """From now on this process ends when the process `pid` does, however that comes about. On Linux; else nothing."""
    if hasattr(os, "pidfd_open"):
        threading.Thread(target=_end_after, args=(pid,), daemon=True).start()


def _end_after(pid: int) -> None:
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])  # readable once that process is gone
    os._exit(1)
