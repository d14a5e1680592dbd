"""What the folder of a run shows, while it runs, to somebody who only looks."""

import json
from pathlib import Path
from typing import Any

from dist_alexnet.checkpoint.commit import COMMIT


class Tail:
    """The records of a file of JSON lines, each read once, as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self.records: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        """All records so far. A line that is not whole is none: a killed start leaves one."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
            whole, newline, _ = new.rpartition(b"\n")
            self._at += len(whole) + len(newline)
            for line in whole.split(b"\n"):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    self.records.append(record)
        return self.records


class Watch:
    """One run, from one of its starts on."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder
        self._attempts, self._metrics = Tail(run_folder / "attempts.jsonl"), Tail(run_folder / "metrics.jsonl")
        self.before = self._newest()

    def generation(self) -> int | None:
        """Of a start that has begun since this was made; None as long as there is none."""
        newest = self._newest()
        return newest if newest > self.before else None

    def trained(self) -> list[int]:
        """Steps of this start that are in the metrics, in order."""
        return [line["step"] for line in self._of_this_start() if "train/loss" in line]

    def evaluating(self) -> int | None:
        """The last step of this start, where no line of an evaluation follows its own; else None."""
        lines = self._of_this_start()
        return int(lines[-1]["step"]) if lines and "train/loss" in lines[-1] else None

    def saving(self) -> Path | None:
        """A checkpoint of this start that is being written."""
        generation = self.generation()
        if generation is None:
            return None
        folders = sorted((self.folder / "checkpoints").glob(f"step-*/g{generation:04d}"))
        return next((folder for folder in reversed(folders) if not (folder / COMMIT).exists()), None)

    def saved(self) -> int:
        """The newest step of this start that is committed; -1 without one."""
        generation = self.generation()
        steps = self.folder.glob(f"checkpoints/step-*/g{generation or 0:04d}/{COMMIT}")
        return max((int(path.parent.parent.name[5:]) for path in steps), default=-1)

    def _of_this_start(self) -> list[dict[str, Any]]:
        generation = self.generation()
        return [line for line in self._metrics.look() if line.get("generation") == generation]

    def _newest(self) -> int:
        return max((line["generation"] for line in self._attempts.look() if line.get("event") == "start"), default=0)
