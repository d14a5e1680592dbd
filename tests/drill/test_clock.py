"""A clock that jumps. No ordinary user can make one jump under a run, so what a run does then is asked here."""

import time
from pathlib import Path

import pytest

from dist_alexnet.errors import StopRequested
from dist_alexnet.guard import requests
from dist_alexnet.guard.requests import LOOK_S, STOP_FILE, Requests
from dist_alexnet.parallel.mesh import Mesh

HOUR_S = 3600.0


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How far the clock has jumped, to be set."""
    by, real = {"s": 0.0}, time.time
    monkeypatch.setattr(requests.time, "time", lambda: real() + by["s"])
    return by


def stops(asked: Requests) -> str | None:
    """What the run stops for within two steps; None where it goes on."""
    try:
        asked.look()
        asked.look()
    except StopRequested as stop:
        return str(stop)
    return None


def test_forward_past_the_end_the_run_saves_and_stops(alone: Mesh, tmp_path: Path, jump: dict[str, float]) -> None:
    now_s = time.time()
    asked = Requests(tmp_path, job_ends_at_s=now_s + HOUR_S)
    assert stops(asked) is None
    jump["s"] = HOUR_S
    assert stops(asked) == "the end of the job's time"


def test_a_little_or_backward_it_goes_on(alone: Mesh, tmp_path: Path, jump: dict[str, float]) -> None:
    asked = Requests(tmp_path, job_ends_at_s=time.time() + HOUR_S)
    for jump["s"] in (60.0, -HOUR_S, -24 * HOUR_S):
        assert stops(asked) is None


def test_what_is_counted_from_the_start_knows_no_clock(alone: Mesh, tmp_path: Path, jump: dict[str, float]) -> None:
    asked = Requests(tmp_path, lasts_s=10.0, save_every_s=5.0)
    for jump["s"] in (HOUR_S, -HOUR_S):
        assert stops(asked) is None
        assert not asked.save_is_due()


def test_the_file_stop_is_seen_after_a_jump_backward(alone: Mesh, tmp_path: Path, jump: dict[str, float]) -> None:
    asked = Requests(tmp_path)
    (tmp_path / STOP_FILE).touch()
    jump["s"] = -24 * HOUR_S
    time.sleep(LOOK_S)
    assert stops(asked) == "the file stop in the run folder"
