"""The checks in order, each with its time limit, on all ranks in step; one line each, said by rank 0."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Literal

from dist_alexnet.doctor.finding import Finding, from_json, merged
from dist_alexnet.doctor.site import Site
from shards.errors import DistAlexnetError

GRACE_S = 5.0  # beside its limit, for a rank's answer to arrive


@dataclass(frozen=True)
class Check:
    """on: which ranks look. needs: the checks that must not have failed. remedy: where ranks' values differ.

    A check that waits for other ranks does so for less than limit_s.
    """

    name: str
    look: Callable[[Site], Finding]
    on: Literal["every rank", "each host", "first rank"] = "each host"
    needs: tuple[str, ...] = ()
    limit_s: float = 15.0
    remedy: str = "make it the same on all hosts"


@dataclass(frozen=True)
class Line:
    """What one check came to, over all ranks."""

    name: str
    finding: Finding
    took_s: float


def examine(site: Site, checks: Sequence[Check], say: Callable[[Line], None]) -> bool:
    """Go through the checks with all ranks; rank 0 gives each line to `say`. Whether none failed, as rank 0 knows; the
    others hear of it by `settled`.

    Raises TimeoutError on a rank that hears nothing of rank 0 any more.
    """
    with _retries_heard() as retries:
        if site.world.rank == 0:
            return _lead(site, checks, say, retries)
        return _follow(site, checks, retries)


def _lead(site: Site, checks: Sequence[Check], say: Callable[[Line], None], retries: list[str]) -> bool:
    """Rank 0: name a check, do one's own part, hear the others, say what it comes to."""
    board, steps, failed = site.board, count(), set[str]()
    board.put("host", [site.host, site.world.local_rank])
    hosts = board.of_all(range(site.world.world_size), "host", GRACE_S)
    for check in checks:
        if failed & set(check.needs):
            failed.add(check.name)  # and what needs this one
            continue
        began_s, step = time.monotonic(), next(steps)
        board.put(f"check-{step}", check.name)
        asked = [rank for rank, (_, local_rank) in hosts.items() if _takes_part(check, rank, local_rank)]
        board.put(f"answer-{step}", vars(_within(check.limit_s, check.look, site, retries)))
        answers = board.of_all(asked, f"answer-{step}", check.limit_s + GRACE_S)
        silent = [rank for rank in asked if rank not in answers]
        found = {rank: (hosts[rank][0], from_json(answer)) for rank, answer in answers.items()}
        finding = merged(found, silent, check.remedy)
        hosts = {rank: host for rank, host in hosts.items() if rank not in silent}  # nothing waits for them again
        if finding.level == "FAIL":
            failed.add(check.name)
        say(Line(check.name, finding, time.monotonic() - began_s))
    board.put(f"check-{next(steps)}", None)
    return not failed


def _follow(site: Site, checks: Sequence[Check], retries: list[str]) -> bool:
    """Any other rank: do one's part of what rank 0 names."""
    board, known = site.board, {check.name: check for check in checks}
    patience_s = 2 * max(check.limit_s + GRACE_S for check in checks)
    board.put("host", [site.host, site.world.local_rank])
    for step in count():
        name = board.of(0, f"check-{step}", patience_s)
        if name is None:
            break
        if _takes_part(known[name], site.world.rank, site.world.local_rank):
            finding = _within(known[name].limit_s, known[name].look, site, retries)
            board.put(f"answer-{step}", vars(finding))
    return True


def settled(site: Site, passed: bool) -> bool:
    """What rank 0 gives, on every rank. The last words: a launcher ends all ranks when one leaves with an error."""
    board = site.board
    if site.world.rank > 0:
        passed = bool(board.of(0, "passed", GRACE_S))
        board.put("heard", True)
    else:
        board.put("passed", passed)
        board.of_all(range(1, site.world.world_size), "heard", GRACE_S)  # the store may end with this process
    return passed


def _takes_part(check: Check, rank: int, local_rank: int) -> bool:
    return rank == 0 or check.on == "every rank" or (check.on == "each host" and local_rank == 0)


def _within(limit_s: float, look: Callable[[Site], Finding], site: Site, retries: list[str]) -> Finding:
    """What the check finds; that it failed, where it crashes or hangs. A thread that hangs is left where it is."""
    answer: queue.SimpleQueue[Finding] = queue.SimpleQueue()
    retries.clear()
    threading.Thread(target=lambda: answer.put(_tried(look, site)), daemon=True).start()
    try:
        return answer.get(timeout=limit_s)
    except queue.Empty:
        last = f"; what was said last: {retries[-1]}" if retries else ""
        return Finding("FAIL", f"no answer within {limit_s:.0f} s{last}", "find what it waits for: a mount, a server")


def _tried(look: Callable[[Site], Finding], site: Site) -> Finding:
    try:
        return look(site)
    except DistAlexnetError as error:
        return Finding("FAIL", str(error))
    except Exception as error:
        return Finding("FAIL", f"the check broke off: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


@contextmanager
def _retries_heard() -> Iterator[list[str]]:
    """What the reader of shards says of its retries, kept instead of said: it may explain a silence."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("shards")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
