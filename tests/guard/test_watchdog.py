"""How long a rank may stand still, and what it makes of others. Real hangs: tests/ranks/test_watchdog.py."""

import threading
from collections.abc import Iterator

import pytest

from dist_alexnet.guard.beats import Beat
from dist_alexnet.guard.heartbeat import Heartbeat, Phase
from dist_alexnet.guard.verdict import Heard
from dist_alexnet.guard.watchdog import Watchdog
from dist_alexnet.parallel.mesh import Mesh
from shards import storage

HANG_S = 100.0
LOAD_S = 490.0


@pytest.fixture
def watchdog(alone: Mesh) -> Iterator[Watchdog]:
    with Watchdog(Heartbeat(), HANG_S, "here", lambda sentence: pytest.fail(sentence)) as watchdog:
        yield watchdog


def heard(rank: int, may_s: float, silent_s: float, alarmed: bool = False) -> Heard:
    return Heard(Beat(rank, "there", 1, "load", 3, 9, 1.0, may_s, alarmed=alarmed), silent_s)


@pytest.mark.parametrize(
    ("phase", "under_way", "load_s", "may_s"),
    [
        ("forward", True, LOAD_S, HANG_S),
        ("reduce", False, 0, 4 * HANG_S),  # the first step
        ("start", True, 0, 4 * HANG_S),
        ("save", True, 0, 4 * HANG_S),
        ("load", True, 0, HANG_S),
        ("load", True, LOAD_S, LOAD_S),  # remote shards
        ("evaluate", True, LOAD_S, LOAD_S),
        ("load", True, HANG_S / 2, HANG_S),
    ],
)
def test_how_long_a_rank_may_stay(
    watchdog: Watchdog, phase: Phase, under_way: bool, load_s: float, may_s: float
) -> None:
    watchdog._heartbeat.enter(phase, 1)
    watchdog._heartbeat.under_way, watchdog.load_s = under_way, load_s
    assert watchdog._patience_s() == may_s


def test_patience_is_that_of_the_most_patient_rank_that_is_heard(watchdog: Watchdog) -> None:
    """The others wait for the one whose storage is being asked again; not for one that is silent."""
    watchdog._heartbeat.enter("forward", 3)
    watchdog._heartbeat.under_way = True
    watchdog._heard = {1: heard(1, LOAD_S, silent_s=1.0), 2: heard(2, HANG_S, silent_s=0.0)}
    assert watchdog._patience_s() == LOAD_S
    watchdog._heard = {1: heard(1, LOAD_S, silent_s=0.5 * HANG_S)}
    assert watchdog._patience_s() == HANG_S


def test_an_alarm_is_everybodys_unless_it_is_old(watchdog: Watchdog) -> None:
    watchdog._heard = {1: heard(1, HANG_S, silent_s=1.0, alarmed=True)}
    assert watchdog._others_alarmed()
    watchdog._heard = {1: heard(1, HANG_S, silent_s=0.5 * HANG_S, alarmed=True)}
    assert not watchdog._others_alarmed()


def test_switched_off_there_is_no_thread(alone: Mesh) -> None:
    before = set(threading.enumerate())
    with Watchdog(Heartbeat(), None, "here", lambda sentence: None) as watchdog:
        assert set(threading.enumerate()) <= before  # one of another test's may end meanwhile
        watchdog.close()


def test_a_storage_may_use_up_its_tries() -> None:
    """Each at its limit, with the longest pauses: the trainer lets a load take as long, and NCCL ten minutes."""
    tries = len(storage.RETRY_DELAYS_S) + 1
    block_s = storage.REQUEST_S + storage.STREAM_BLOCK_BYTES / storage.SLOWEST_BYTES_PER_S
    assert tries * block_s + 1.5 * sum(storage.RETRY_DELAYS_S) == storage.GIVES_UP_S
    assert storage.GIVES_UP_S < 600
