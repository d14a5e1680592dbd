"""The online path of real W&B against a stand-in of its service on loopback (tests/track/stand_in.py)."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.track.one_start import KEY, Asked, history, loss, offline_files, start
from tests.track.stand_in import StandIn, stand_in


@pytest.fixture
def service() -> Iterator[StandIn]:
    with stand_in() as service:
        yield service


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def online(folder: Path, service: StandIn, **asked: Any) -> list[str]:
    """One start, online; returns its lines on stderr."""
    done = start(
        Asked(str(folder), "online", **asked),
        home=folder.parent / "home",
        check=not asked.get("kill"),
        **environ(service.url),
    )
    return done.stderr.splitlines()


def environ(url: str) -> dict[str, str]:
    """W&B's own interval is 15 s: no test waits that long for a row."""
    return {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url, "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}


def rows_of(service: StandIn) -> list[tuple[int, float]]:
    (run_id,) = service.runs
    rows = service.history(run_id)
    assert [row["_step"] for row in rows] == [row["step"] for row in rows]
    return [(row["step"], row["train/loss"]) for row in rows]


def lines_of(*parts: tuple[int, int, int]) -> list[tuple[int, float]]:
    """(first, last, generation) -> what a part of the run should look like."""
    return [(step, loss(step, generation)) for first, last, generation in parts for step in range(first, last + 1)]


def test_each_step_is_there_once_over_kills_resumes_and_rollbacks(tmp_path: Path, service: StandIn) -> None:
    """And what an earlier start could not send, or what it sent beyond the checkpoint, is put right by the next."""
    folder, sent = tmp_path / "run", tmp_path / "sent"
    threading.Thread(target=_when, args=(lambda: _rows(service) >= 29, sent), daemon=True).start()
    online(folder, service, last=30, kill=True, sent=str(sent))
    assert rows_of(service) == lines_of((1, 29, 1))  # the row of the last step was open

    # The checkpoint was of step 20: what stands beyond it goes.
    assert online(folder, service, generation=2, stands_on=1, first=20, last=40, exit_code=75) == []
    assert rows_of(service) == lines_of((1, 20, 1), (21, 39, 2))
    assert service.operations().count("RewindRun") == 1

    # What a stop left open is sent by the start that follows, which is rolled back on its way.
    sent.unlink()
    threading.Thread(target=_when, args=(lambda: _rows(service) >= 55, sent), daemon=True).start()
    back = {"rolled_back_at": 60, "rolled_back_to": 50, "sent": str(sent), "alert": "it was stopped"}
    assert online(folder, service, generation=3, stands_on=2, first=40, last=65, **back) == []
    assert rows_of(service) == lines_of((1, 20, 1), (21, 40, 2), (41, 50, 3), (51, 65, 4))
    assert service.operations().count("RewindRun") == 2
    assert service.alerts == [("the run", "it was stopped")]

    # Where the service cannot cut back, it keeps what it has, and still no step is there twice.
    service.can_rewind = False
    (line,) = online(folder, service, generation=5, stands_on=4, first=60, last=70)
    assert "could not be cut back to step 60" in line
    assert "up to step 65 it stays as it was sent" in line
    assert rows_of(service)[50:] == lines_of((51, 65, 4), (66, 70, 5))


def test_with_system_metrics_of_all_nodes_only_new_rows_are_sent(tmp_path: Path, service: StandIn) -> None:
    """The service numbers the rows of a run with several writers, so what it has is not known."""
    folder = tmp_path / "run"
    start(Asked(str(folder), "disabled", last=20), home=tmp_path / "home")
    nodes = {"system_metrics": "nodes"}
    assert online(folder, service, generation=2, stands_on=1, first=10, last=15, settings=nodes) == []
    (run_id,) = service.runs
    rows = service.history(run_id)
    assert [(row["step"], row["train/loss"]) for row in rows] == lines_of((11, 15, 2))


def test_lines_of_a_start_without_a_service_are_sent_by_the_next(tmp_path: Path, service: StandIn) -> None:
    folder = tmp_path / "run"
    service.refuse_key = True
    (line,) = online(folder, service, last=20)
    assert line.startswith("W&B: online start failed (")
    assert "401" in line
    assert line.endswith("this run is logged offline")
    assert [row["step"] for row in history(offline_files(folder)[0])] == list(range(1, 21))
    service.refuse_key, service.refuse_entity = False, True
    (line,) = online(folder, service, generation=2, stands_on=1, first=20, last=30)
    assert "permission denied" in line
    service.refuse_entity = False
    assert online(folder, service, generation=3, stands_on=2, first=30, last=40) == []
    assert rows_of(service) == lines_of((1, 20, 1), (21, 30, 2), (31, 40, 3))
    assert len(service.operations()) > 0
    _holds_no_key(tmp_path)


def test_a_service_that_does_not_answer_costs_the_loop_nothing(
    tmp_path: Path, service: StandIn, black_hole: str
) -> None:
    asked: dict[str, Any] = {"last": 100, "step_s": 0.02, "init_timeout_s": 2.0, "finish_timeout_s": 2.0}
    without = _times(start(Asked(str(tmp_path / "without"), "disabled", **asked), home=tmp_path / "home"))
    threading.Thread(target=_stall_midway, args=(service,), daemon=True).start()
    for trouble, url in (("from the start", black_hole), ("midway", service.url)):
        folder = tmp_path / trouble
        done = start(Asked(str(folder), "online", **asked), home=tmp_path / "home", **environ(url))
        times = _times(done)
        assert times["median_s"] < 2 * without["median_s"]
        assert times["longest_s"] < 1.5  # a call that waits for the service takes one of the limits of 2 s
        assert times["close_s"] < 15
        assert times["exit_s"] < 10  # nothing holds the process afterwards
        if trouble == "from the start":
            (line,) = done.stderr.splitlines()
            assert line.endswith("this run is logged offline")
            assert [row["step"] for row in history(offline_files(folder)[0])] == list(range(1, 101))
        else:
            assert 0 < _rows(service) < 100
        _holds_no_key(folder)
        assert KEY not in done.stdout + done.stderr


def _times(done: "subprocess.CompletedProcess[str]") -> dict[str, float]:
    """Of a start: its loop, its closing, and from then to the end of the process."""
    times: dict[str, float] = json.loads(done.stdout)
    return {**times, "exit_s": time.time() - times["closed_at_s"]}


def _rows(service: StandIn) -> int:
    return sum(len(service.history(run_id)) for run_id in list(service.runs))


def _when(true: Any, path: Path | None = None, limit_s: float = 30.0) -> None:
    """Wait until something is true, and say so by a file."""
    end_s = time.monotonic() + limit_s
    while not true() and time.monotonic() < end_s:
        time.sleep(0.02)
    if path is not None:
        path.touch()


def _stall_midway(service: StandIn) -> None:
    _when(lambda: _rows(service) > 0)
    service.stalled.set()


def _holds_no_key(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
