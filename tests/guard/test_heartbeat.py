"""What a rank says of itself: cheap to say, and by a clock that stands still while the process does."""

import threading
import time
from unittest.mock import Mock, patch

import pytest

from dist_alexnet.config import Config
from dist_alexnet.guard import beats
from dist_alexnet.guard.beats import Awake, stands_at
from dist_alexnet.guard.divergence import DivergenceGuard
from dist_alexnet.guard.heartbeat import OF_A_STEP, Heartbeat
from dist_alexnet.parallel import agree
from dist_alexnet.train import _Run


def test_seconds_by_phase() -> None:
    heart = Heartbeat()
    heart.enter("load", 1)
    time.sleep(0.02)
    heart.enter("forward")
    heart.enter("save")
    time.sleep(0.02)
    heart.enter("load", 2)
    seconds = dict(zip(OF_A_STEP, heart.take_seconds(), strict=True))
    assert 0.02 <= seconds["load"] < 0.2
    assert seconds["forward"] < 0.02
    assert seconds["backward"] == 0
    assert max(heart.take_seconds()) < 0.02
    assert (heart.phase, heart.step, heart.phases) == ("load", 2, 4)


def test_a_phase_costs_microseconds() -> None:
    """Twenty at most, on a machine that is busy with other things; it is half a one on one that is not."""
    heart = Heartbeat()
    costs_s = []
    for _ in range(20):
        began_s = time.perf_counter()
        for _ in range(1000):
            heart.enter("forward")
        costs_s.append((time.perf_counter() - began_s) / 1000)
    assert min(costs_s) < 20e-6


def test_pieces_are_moves_and_no_phases() -> None:
    heart = Heartbeat()
    heart.enter("save")
    heart.moved()
    assert (heart.phases, heart.moves) == (1, 2)


def test_drawing_is_one_phase_however_often_rank_0_says_that_it_moves() -> None:
    """Only rank 0 draws, and who is behind is told by the number of phases."""
    run = _Run.__new__(_Run)
    run.config, run.heart = Config(), Heartbeat()
    run.guard = DivergenceGuard(run.config.divergence)
    run.measures, run.pictures = Mock(), Mock()
    run.pictures.draw = lambda step, data_step, moved: [moved() for _ in range(3)]
    run._draw(1)
    assert (run.heart.phase, run.heart.phases, run.heart.moves) == ("evaluate", 1, 4)


def test_a_clock_that_stands_still_with_its_process() -> None:
    with patch.object(beats.time, "monotonic", side_effect=[0.0, 1.0, 101.0, 102.0]):
        clock = Awake(tick_s=1.0)
        assert [clock.tick(), clock.tick(), clock.tick()] == [1.0, 3.0, 4.0]  # 100 s asleep count as two ticks


@pytest.mark.parametrize("collective", [True, False])
def test_where_a_thread_stands(collective: bool) -> None:
    """The innermost line of the trainer's own, and whether that only waits for other ranks."""
    begun, done = threading.Event(), threading.Event()

    def waits() -> bool:
        begun.set()
        return done.wait(10)

    # on_first_rank, with a rank 0 that takes its time; or a function outside the trainer
    def works() -> None:
        with patch.object(agree.dist, "get_rank", lambda: 0), patch.object(agree.dist, "broadcast_object_list"):
            agree.on_first_rank(waits) if collective else waits()

    thread = threading.Thread(target=works)
    thread.start()
    begun.wait(10)
    line, inside = stands_at(thread.ident)
    done.set()
    thread.join()
    assert inside == collective
    assert line.startswith("dist_alexnet/parallel/agree.py:") == collective
