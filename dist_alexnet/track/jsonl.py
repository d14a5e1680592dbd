"""Files of one JSON object a line that only ever grow, and how to read them after restarts.

Every line carries the generation of the start that wrote it. A resumed run writes some steps a second time; nothing
is cut out of the file, readers drop the lines that a later start superseded.

Numbers that JSON has no word for are written as the strings "nan", "inf" and "-inf" (values of the record itself,
not of lists inside it) and come back as floats.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
TAIL_BYTES = 1 << 20


class JsonLines:
    """A writer: each append is in the hands of the operating system when it returns."""

    def __init__(self, path: Path, generation: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._generation = generation
        # close a line that a killed process left half written, so that ours does not continue it
        self._prefix = b"" if _ends_whole(path) else b"\n"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line, {"generation": g, **record}. Raises OSError where the disk does."""
        values = {key: _encoded(value) for key, value in record.items() if key != "generation"}
        line = json.dumps({"generation": self._generation, **values}, allow_nan=False)
        rest = memoryview(self._prefix + line.encode() + b"\n")
        while rest:  # once, unless the disk is full or a signal came
            rest = rest[os.write(self._descriptor, rest) :]
        self._prefix = b""

    def sync(self) -> None:
        """Put every line so far on the disk: what the operating system holds goes with the machine."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in the order written; none where there is no file.

    A line that is not whole is what a killed process left, at the end or where the next start closed it: it is skipped.
    """
    return _records(path.read_bytes().split(b"\n")) if path.exists() else []


class Tail:
    """Reads a file of lines while others write it: whole lines, each once, a bounded part of the file at a time."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_bytes, self._begun = path, 0, b""

    def new(self) -> list[dict[str, Any]] | None:
        """The next records, in the order written; perhaps none of a part of the file, None at its end so far."""
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            part = file.read(TAIL_BYTES)
        if not part:
            return None
        self._read_bytes += len(part)
        *lines, self._begun = (self._begun + part).split(b"\n")
        return _records(lines)


@dataclass(frozen=True)
class Start:
    """One start of a run: the step at which it took the run up, and the generation whose checkpoint it stands on."""

    step: int
    stands_on: int | None
    launch: str | None = field(default=None, compare=False)  # environment.launch_id of it


def starts(attempts: Path) -> dict[int, Start]:
    """generation -> its start, from the run's attempts.jsonl."""
    lines = [record for record in read_lines(attempts) if record.get("event") == "start"]
    return {record["generation"]: Start(record["step"], record.get("from"), record.get("launch")) for record in lines}


def live_lines(path: Path, started: Mapping[int, Start]) -> list[dict[str, Any]]:
    """The records that count. `started` is what starts() gave.

    They are the newest start's, those of the start it stands on up to the step where it took over, and so on back.
    Steps that a start did beyond that were done again, or were never part of the run. Records without a step count.
    """
    last_step = last_steps(started)
    return [record for record in read_lines(path) if counts(record, last_step)]


def last_steps(started: Mapping[int, Start]) -> dict[int, float]:
    """generation -> the last of its steps that counts, for those that the newest start stands on, and itself."""
    last_step: dict[int, float] = {}
    generation = max(started, default=None)
    limit: float = math.inf
    while generation is not None and generation in started and generation not in last_step:
        last_step[generation] = limit
        limit, generation = started[generation].step, started[generation].stands_on
    return last_step


def counts(record: Mapping[str, Any], last_step: Mapping[int, float]) -> bool:
    """Whether a record is part of the run. `last_step` is what last_steps() gave."""
    generation, step = record.get("generation"), record.get("step")
    if not isinstance(generation, int) or not isinstance(step, int) or not last_step:
        return True
    return step <= last_step.get(generation, -1)


def _records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append({key: _decoded(value) for key, value in record.items()})
    return records


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _decoded(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _ends_whole(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
