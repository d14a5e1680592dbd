"""metrics.jsonl as rows of W&B: all records of a step are one row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One step: its numbers, and pictures by name."""

    step: int
    values: dict[str, Any]
    pictures: dict[str, Path] = field(default_factory=dict)


class Rows:
    """Joins records as they come. A row is whole when a record of another step follows it."""

    def __init__(self) -> None:
        self._open: Row | None = None

    def add(self, record: Mapping[str, Any]) -> Row | None:
        """Take a record of metrics.jsonl; returns the row that is whole now, if one is."""
        values = {key: value for key, value in record.items() if key != "generation"}
        if self._open is not None and self._open.step == record["step"]:
            self._open.values |= values
            return None
        whole, self._open = self._open, Row(record["step"], values)
        return whole

    def rest(self) -> Row | None:
        """The last row, of which no more is to come."""
        whole, self._open = self._open, None
        return whole


def pictures_of(folder: Path) -> dict[int, dict[str, Path]]:
    """step -> name -> file, of the pictures of a run folder: <folder>/pictures/step-XXXXXXXX-NAME.png."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted((folder / "pictures").glob("step-*-*.png")):
        _, step, name = path.stem.split("-", 2)
        if step.isdecimal():
            found.setdefault(int(step), {})[name] = path
    return found
