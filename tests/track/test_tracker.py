"""The file is told before anyone else."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_alexnet.track.console import NullConsole, PlainConsole
from dist_alexnet.track.jsonl import JsonLines, read_lines
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.track.wandb_run import WandbRun


class BrokenService:
    """A W&B run whose every call fails, and which looks at the file when it is called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[int] = []

    def log(self, values: Mapping[str, Any]) -> None:
        self.seen.append(len(read_lines(self.path)))
        raise ConnectionError("gone\nsecond line")

    def finish(self, exit_code: int) -> None:
        raise AssertionError("a run that failed is left alone")


def test_the_file_first_and_a_failing_service_stops_nothing(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    service, stream = BrokenService(path), io.StringIO()
    tracker = Tracker(JsonLines(path, 0), WandbRun(service), PlainConsole(10, stream))
    for step in (1, 2):
        tracker.metrics(step, step * 64, step / 5, {"train/loss": 2.0})
    tracker.message("hello")
    tracker.close()
    assert service.seen == [1]
    assert read_lines(path) == [
        {"generation": 0, "step": 1, "samples": 64, "epoch": 0.2, "train/loss": 2.0},
        {"generation": 0, "step": 2, "samples": 128, "epoch": 0.4, "train/loss": 2.0},
    ]
    assert len(stream.getvalue().splitlines()) == 3
    assert capsys.readouterr().err.splitlines() == [
        "W&B: log failed (ConnectionError: gone); the run goes on without it, metrics.jsonl is complete"
    ]


def test_a_rank_without_file_and_service(capsys: Any) -> None:
    tracker = Tracker(None, None, NullConsole())
    tracker.metrics(1, 64, 0.2, {"train/loss": 2.0})
    tracker.message("hello")
    tracker.close(1)
    assert capsys.readouterr() == ("", "")
