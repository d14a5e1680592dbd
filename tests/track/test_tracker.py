"""The file is told before anyone else."""

import io
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_alexnet.track import session, wandb_run
from dist_alexnet.track import tracker as tracker_module
from dist_alexnet.track.console import NullConsole, PlainConsole
from dist_alexnet.track.jsonl import JsonLines, read_lines
from dist_alexnet.track.rows import Row
from dist_alexnet.track.session import Card
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.track.wandb_run import WandbRun


class Slow:
    """A W&B run that looks at the file when it is called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[int] = []

    def wake(self) -> None:
        self.seen.append(len(read_lines(self.path)))

    def finish(self, exit_code: int, limit_s: float = 0) -> None:
        self.seen.append(exit_code)


def test_the_file_first(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    service, stream = Slow(path), io.StringIO()
    tracker = Tracker(JsonLines(path, 0), cast(WandbRun, service), PlainConsole(10, stream))
    for step in (1, 2):
        tracker.metrics(step, step * 64, step / 5, {"train/loss": 2.0})
    tracker.message("hello")
    tracker.close(75)
    assert service.seen == [1, 2, 75]
    assert read_lines(path) == [
        {"generation": 0, "step": 1, "samples": 64, "epoch": 0.2, "train/loss": 2.0},
        {"generation": 0, "step": 2, "samples": 128, "epoch": 0.4, "train/loss": 2.0},
    ]
    assert len(stream.getvalue().splitlines()) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", ["open", "send", "config"])
def test_whatever_w_and_b_raises_is_one_line_and_stops_nothing(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    class Session:
        first_step, is_offline = 0, False

        def say(self, facts: object) -> None: ...

        def alert(self, title: str, text: str) -> None: ...  # it may come first

        def refer_to_checkpoint(self, step: int, url: str) -> None: ...

        def send(self, row: object) -> None:
            raise ConnectionError("gone\nsecond line")

    def open_session(*_: object, **__: object) -> Session:
        if broken == "open":
            raise ConnectionError("gone\nsecond line")
        return Session()

    def card() -> Card:
        if broken == "config":
            raise ConnectionError("gone\nsecond line")
        return Card("id", "name", tmp_path, "project")

    monkeypatch.setattr(session, "open_session", open_session)
    tracker = Tracker(
        JsonLines(tmp_path / "metrics.jsonl", 1), WandbRun(card, ("online",), tmp_path, (1, 0)), NullConsole()
    )
    for step in (1, 2, 3):
        tracker.metrics(step, step * 64, step / 5, {"train/loss": 2.0})
    tracker.alert("title", "text")
    tracker.checkpoint(3, "there")
    tracker.pictures(3, {"filters": tmp_path / "none.png"})
    tracker.close()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "failed (ConnectionError: gone); " in line


def test_the_last_message_of_a_process_that_hangs_is_bounded(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, alerts = threading.Event(), []

    class Session:
        first_step, is_offline = 0, False

        def say(self, facts: object) -> None: ...

        def alert(self, title: str, text: str) -> None:
            alerts.append((title, text))

        def finish(self, exit_code: int) -> None:
            never.wait()

    monkeypatch.setattr(session, "open_session", lambda *_, **__: Session())
    monkeypatch.setattr(tracker_module, "HANGS_S", 1.0)
    wandb = WandbRun(lambda: Card("id", "name", tmp_path, "project"), ("online",), tmp_path, (1, 0))
    tracker, began_s = Tracker(None, wandb, NullConsole()), time.monotonic()
    tracker.hangs("it hangs", "rank 1 stands in load")
    assert 0.95 < time.monotonic() - began_s < 5
    assert alerts == [("it hangs", "rank 1 stands in load")]
    tracker.close(1)  # it has been ended
    assert time.monotonic() - began_s < 5
    never.set()
    assert "not everything was sent within 1 s" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "waits_s"), [(0, 1), (1, 0), (75, 0)])
def test_who_breaks_training_off_waits_less(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, code: int, waits_s: int
) -> None:
    """Slurm and torchrun kill what has not ended some seconds after they have asked."""
    never = threading.Event()

    def open_session(*_: object, **__: object) -> None:
        never.wait()
        raise ConnectionError

    assert wandb_run.BROKEN_OFF_S < 30
    monkeypatch.setattr(session, "open_session", open_session)
    monkeypatch.setattr(wandb_run, "CLOSE_LIMIT_S", 1.0)
    monkeypatch.setattr(wandb_run, "BROKEN_OFF_S", 0.0)
    wandb = WandbRun(lambda: Card("id", "name", tmp_path, "project"), ("online",), tmp_path, (1, 0))
    wandb.finish(code)
    assert f"not everything was sent within {waits_s} s" in capsys.readouterr().err
    never.set()
    wandb._thread.join(10)  # what it says is not the next test's


def test_a_rollback_without_a_service_goes_on_offline(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what of W&B ends by SystemExit, as its service that was killed does, ends nothing of ours."""
    opened: list[tuple[str, list[int]]] = []

    class Session:
        first_step = 0

        def __init__(self, mode: str) -> None:
            self.is_offline = mode == "offline"
            opened.append((mode, []))

        def say(self, facts: object) -> None: ...

        def send(self, row: Row) -> None:
            opened[-1][1].append(row.step)

        def finish(self, exit_code: int = 0) -> None: ...

    def open_session(mode: str, *_: object, **__: object) -> Session:
        if mode == "online" and opened:
            raise ConnectionError("gone")
        return Session(mode)

    def teardown(exit_code: int) -> None:
        raise SystemExit(2)

    monkeypatch.setattr(session, "open_session", open_session)
    monkeypatch.setitem(sys.modules, "wandb", cast(Any, SimpleNamespace(teardown=teardown)))
    for generation, stands_on in ((1, None), (2, 1)):
        JsonLines(tmp_path / "attempts.jsonl", generation).append(
            {"event": "start", "step": generation - 1, "from": stands_on}
        )
    run = WandbRun(lambda: Card("id", "name", tmp_path, "p"), ("online", "offline"), tmp_path, (1, 0))
    tracker = Tracker(JsonLines(tmp_path / "metrics.jsonl", 1), run, NullConsole())
    tracker.metrics(1, 64, 0.2, {"train/loss": 2.0})
    while not opened:
        time.sleep(0.01)
    tracker.go_on(JsonLines(tmp_path / "metrics.jsonl", 2), 2, 1)
    tracker.metrics(2, 128, 0.4, {"train/loss": 2.0})
    tracker.close()
    assert [mode for mode, _ in opened] == ["online", "offline"]
    assert opened[1][1] == [1, 2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("this run is logged offline")


def test_a_rank_without_file_and_service(capsys: Any) -> None:
    tracker = Tracker(None, None, NullConsole())
    tracker.metrics(1, 64, 0.2, {"train/loss": 2.0})
    tracker.message("hello")
    tracker.close(1)
    assert capsys.readouterr() == ("", "")
