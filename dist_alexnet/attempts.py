"""`dist-alexnet attempts`: every start of a run, how it ended, and what it brought."""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.errors import RunFolderError
from dist_alexnet.track.jsonl import last_steps, read_lines, starts
from dist_alexnet.track.table import print_table

COLUMNS = ("start", "began", "ended", "hosts", "ranks", "steps", "gained", "lost", "end")
CAUSE_CHARACTERS = 44  # attempts.jsonl has all of it


@dataclass(frozen=True)
class Attempt:
    """One start. Steps it did: those that count (gained), and those that were done again or given up (lost)."""

    generation: int
    began_s: float  # of time.time()
    ended_s: float | None  # None: it has written no end
    first_step: int
    reached_step: int
    gained: int
    lost: int
    layout: Mapping[str, int]
    hosts: tuple[str, ...]
    cause: str
    code: int | None  # None: it has written no end, or the same processes went on as the next start


def attempts(run_folder: Path) -> list[Attempt]:
    """The starts of a run, oldest first. Raises RunFolderError where there has been none."""
    records = read_lines(run_folder / "attempts.jsonl")
    if not any(record.get("event") == "start" for record in records):
        raise RunFolderError(f"{run_folder} holds no attempts.jsonl with a start: give the folder of a run")
    ends = {record["generation"]: record for record in records if record.get("event") == "end"}
    reached: dict[int, int] = {}
    for line in read_lines(run_folder / "metrics.jsonl"):
        generation = line.get("generation", 0)
        reached[generation] = max(reached.get(generation, 0), int(line.get("step", 0)))
    counts_until = last_steps(starts(run_folder / "attempts.jsonl"))
    newest = max(record["generation"] for record in records)
    return [
        _attempt(record, ends.get(record["generation"]), reached, counts_until, newest)
        for record in records
        if record.get("event") == "start"
    ]


def show(run_folder: Path) -> None:
    """Print them as a table."""
    found = attempts(run_folder)
    title = f"{run_folder}: {len(found)} {'start' if len(found) == 1 else 'starts'}"
    print_table(title, COLUMNS, [_row(one) for one in found])


def _row(one: Attempt) -> list[str]:
    ranks = math.prod(one.layout.get(axis, 1) for axis in ("data", "replicas", "columns"))
    steps = f"{one.first_step} to {one.reached_step}"
    cause = one.cause if len(one.cause) <= CAUSE_CHARACTERS else f"{one.cause[: CAUSE_CHARACTERS - 4]} ..."
    end = cause if one.code is None else f"{cause} ({one.code})"
    cells = (one.generation, _clock(one.began_s), _clock(one.ended_s), _short(one.hosts), ranks, steps)
    return [*map(str, cells), str(one.gained), str(one.lost), end]


def _attempt(
    start: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    reached: Mapping[int, int],
    counts_until: Mapping[int, float],
    newest: int,
) -> Attempt:
    generation, first = int(start["generation"]), int(start["step"])
    # what was logged may be behind the step of the end, and is all there is of a start that was killed
    last = max(first, reached.get(generation, 0), int(end["step"]) if end else 0)
    gained = max(0, int(min(last, counts_until.get(generation, first))) - first)
    silent = "running, or killed" if generation == newest else "killed"
    return Attempt(
        generation=generation,
        began_s=float(start["time_s"]),
        ended_s=float(end["time_s"]) if end else None,
        first_step=first,
        reached_step=last,
        gained=gained,
        lost=last - first - gained,
        layout=start.get("layout", {}),
        hosts=tuple(start.get("hosts", ())),
        cause=str(end["cause"]) if end else silent,
        code=end["code"] if end else None,  # none, too, where it was rolled back
    )


def _clock(time_s: float | None) -> str:
    if time_s is None:
        return "-"
    return datetime.datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")


def _short(hosts: tuple[str, ...]) -> str:
    return " ".join(hosts) if len(hosts) <= 4 else f"{hosts[0]} and {len(hosts) - 1} more"
