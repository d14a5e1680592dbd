"""Who is named when a run stands still."""

import json
from dataclasses import asdict, replace

import pytest

from dist_alexnet.guard.beats import Beat
from dist_alexnet.guard.verdict import Heard, ranks_text, verdict

SILENT_S = 10.0


def waiting(rank: int, **values: object) -> Heard:
    """A rank that waits for others in backward of step 7."""
    beat = Beat(rank, f"n{rank // 4}", 9, "backward", 7, 40, 20.0, 300.0, in_collective=True)
    return Heard(replace(beat, **values), 0.5)  # type: ignore[arg-type]


EIGHT = [waiting(rank) for rank in range(8)]


def with_one(number: int, one: Heard) -> list[Heard]:
    return [*EIGHT[:number], one, *EIGHT[number + 1 :]]


def test_a_rank_that_is_in_no_collective() -> None:
    one = waiting(5, phase="load", phases=38, in_s=91.6, waits_for="shard s3://b/t-3.tar", in_collective=False)
    assert verdict(with_one(5, one), SILENT_S) == (
        "rank 5 on host n1: in load since 92 s, shard s3://b/t-3.tar, step 7; waiting: ranks 0-4, 6-7 in backward"
    )


def test_a_silent_rank_goes_before_all() -> None:
    stuck = waiting(2, phase="load", in_collective=False)
    heard = with_one(5, Heard(waiting(5).beat, 31.0))
    heard[2] = stuck
    assert verdict(heard, SILENT_S) == (
        "rank 5 on host n1: silent for 31 s and more, last in backward, step 7; "
        "waiting: ranks 0-1, 3-4, 6-7 in backward, rank 2 in load"
    )


def test_of_several_that_are_free_the_one_that_is_behind() -> None:
    """As on GPUs, where the host waits for the device and not in a collective."""
    heard = [waiting(rank, in_collective=False, phases=40 - (rank == 3)) for rank in range(4)]
    assert verdict(heard, SILENT_S).startswith("rank 3 on host n0: in backward since 20 s, step 7; waiting: ranks 0-2")


def test_all_in_collectives() -> None:
    said = verdict(EIGHT, SILENT_S)
    assert said.startswith("the ranks wait in collectives that do not belong together: rank 0 on host n0: in backward")
    assert said.endswith("; and 5 more")


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([4, 0, 1, 2], "ranks 0-2, 4"), ([0, 2], "ranks 0, 2"), ([1, 0], "ranks 0-1")]
)
def test_ranks_in_words(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text


def test_a_beat_travels_as_json() -> None:
    beat = waiting(3, stands_at="dist_alexnet/train.py:1 (_step)", alarmed=True).beat
    assert Beat(**json.loads(json.dumps(asdict(beat)))) == beat
