"""A slow rank is found by its work, not by its waiting."""

import time
from unittest.mock import patch

import pytest

from dist_alexnet.guard import stragglers
from dist_alexnet.guard.heartbeat import Heartbeat
from dist_alexnet.guard.stragglers import Slow, Stragglers, find_slow
from dist_alexnet.parallel.mesh import Mesh

# seconds a step: load, forward, backward, reduce, step
EVEN = [0.1, 0.2, 0.3, 0.05, 0.05]


def test_who_waits_for_a_slow_load_is_not_slow() -> None:
    """The others wait in backward (ZeRO sums there), or where columns meet in forward, as long as rank 2 loads."""
    for waits_in in (1, 2, 3):
        table = [list(EVEN) for _ in range(4)]
        for rank in (0, 1, 3):
            table[rank][waits_in] += 0.8
        table[2][0] = 0.9
        assert find_slow(table) == Slow(2, "load", 0.9, 0.1)


def test_of_two_ranks_the_other_is_the_measure() -> None:
    assert find_slow([EVEN, [0.1, 0.5, 0.3, 0.05, 0.05]]) == Slow(1, "forward", 0.5, 0.2)


def test_waiting_in_reduce_is_no_work() -> None:
    assert find_slow([EVEN, [0.1, 0.2, 0.3, 0.9, 0.05]]) is None


@pytest.mark.parametrize(
    "table",
    [
        [EVEN],  # alone
        [EVEN, [0.14, 0.2, 0.3, 0.05, 0.05]],  # 1.4 times
        [[0.001, 0.2, 0.3, 0.05, 0.05], [0.01, 0.2, 0.3, 0.05, 0.05]],  # ten times, of next to nothing
    ],
)
def test_who_is_not_slow(table: list[list[float]]) -> None:
    assert find_slow(table) is None


def test_the_sentence() -> None:
    assert Slow(5, "load", 0.9, 0.1).sentence("n2") == "rank 5 (n2) is slow: load 0.9 s a step, others 0.1"


def test_named_once_and_again_after_it_was_well(alone: Mesh) -> None:
    """What one rank measures by itself; the finding is given, as a world of one has none."""
    heart = Heartbeat()
    of_a_start, found = Stragglers(heart), Slow(0, "load", 2.0, 1.0)
    named = []
    with patch.object(stragglers, "LEAST_S", 0.0):
        for slow in (found, found, found, None, found):
            heart.enter("load")
            time.sleep(0.01)
            heart.enter("forward")
            with patch.object(stragglers, "find_slow", lambda table, slow=slow: slow):
                values = of_a_start.measure(steps=2)
            named.append(of_a_start.slow is not None)
            assert 0.005 <= values["time/load_s"] == values["time/load_max_s"] < 0.05
    assert named == [False, True, False, False, True]  # the first interval is not judged


def test_what_travels_beside(alone: Mesh) -> None:
    """In the same all-gather, and no part of the seconds."""
    of_a_start = Stragglers(Heartbeat())
    of_a_start.measure(2, [0.5, 7.0])
    assert of_a_start.beside == [[0.5, 7.0]]
    assert [len(row) for row in of_a_start.table_s] == [5]
    of_a_start.measure(2)
    assert of_a_start.beside == [[]]


def test_short_intervals_say_nothing(alone: Mesh) -> None:
    of_a_start = Stragglers(Heartbeat())
    with patch.object(stragglers, "find_slow", lambda table: pytest.fail("judged")):
        of_a_start.measure(1)
        assert "time/slowest_rank" not in of_a_start.measure(1)
