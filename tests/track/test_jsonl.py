"""Lines that are never cut back, and which of them count."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from dist_alexnet.track import jsonl
from dist_alexnet.track.jsonl import JsonLines, Start, Tail, live_lines, read_lines, starts


def write(path: Path, generation: int, *records: Mapping[str, object]) -> None:
    lines = JsonLines(path, generation)
    for record in records:
        lines.append(record)
    lines.close()


def test_a_line_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "metrics.jsonl"
    lines = JsonLines(path, 2)
    lines.append({"step": 1, "train/loss": 0.5})
    assert path.read_text() == '{"generation": 2, "step": 1, "train/loss": 0.5}\n'
    lines.close()
    lines.close()


def test_the_writer_says_the_generation(tmp_path: Path) -> None:
    write(tmp_path / "m", 3, {"generation": 1, "step": 1})
    assert read_lines(tmp_path / "m") == [{"generation": 3, "step": 1}]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "nothing") == []


def test_numbers_that_json_lacks_come_back(tmp_path: Path) -> None:
    write(tmp_path / "m", 0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "m").read_text(), parse_constant=refuse)
    (record,) = read_lines(tmp_path / "m")
    assert math.isnan(record["a"])
    assert (record["b"], record["c"], record["d"]) == (math.inf, -math.inf, 0.1)


@pytest.mark.parametrize("kept_bytes", range(1, 30))
def test_a_torn_last_line_is_skipped_and_not_continued(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "m"
    write(path, 0, {"step": 1})
    torn = b'{"generation": 0, "step": 22}\n'
    path.write_bytes(path.read_bytes() + torn[:kept_bytes])
    expected = [{"generation": 0, "step": 1}]
    if kept_bytes >= len(torn) - 1:  # whole but for the line's end
        expected.append({"generation": 0, "step": 22})
    assert read_lines(path) == expected
    write(path, 1, {"step": 2}, {"step": 3})
    assert read_lines(path) == [*expected, {"generation": 1, "step": 2}, {"generation": 1, "step": 3}]


def test_starts(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, {"event": "start", "step": 0, "from": None}, {"event": "end", "step": 7})
    write(tmp_path / "a", 2, {"event": "start", "step": 5, "from": 1})
    assert starts(tmp_path / "a") == {1: Start(0, None), 2: Start(5, 1)}


def test_what_a_later_start_did_again_is_superseded(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, 1, *({"step": step} for step in range(1, 8)))
    write(path, 2, *({"step": step} for step in range(6, 10)))
    write(path, 3, {"step": 4}, {"step": 5}, {"event": "no step"})
    live = live_lines(path, {1: Start(0, None), 2: Start(5, 1), 3: Start(3, 1)})
    assert [(record["generation"], record.get("step")) for record in live] == [
        (1, 1),
        (1, 2),
        (1, 3),  # generation 3 took up after step 3
        (3, 4),
        (3, 5),
        (3, None),
    ]
    assert len(read_lines(path)) == 14


def test_a_start_that_nothing_stands_on_supersedes_nothing(tmp_path: Path) -> None:
    """Generation 2 went back to step 5 and died; generation 3 stands on what generation 1 saved at step 10."""
    path = tmp_path / "m"
    write(path, 1, *({"step": step} for step in range(1, 13)))
    write(path, 2, {"step": 6}, {"step": 7})
    write(path, 3, {"step": 11}, {"step": 12}, {"step": 13})
    live = live_lines(path, {1: Start(0, None), 2: Start(5, 1), 3: Start(10, 1)})
    assert [(record["generation"], record["step"]) for record in live] == [
        *((1, step) for step in range(1, 11)),
        *((3, step) for step in range(11, 14)),
    ]


def test_without_starts_every_line_counts(tmp_path: Path) -> None:
    write(tmp_path / "m", 1, {"step": 9})
    assert len(live_lines(tmp_path / "m", {})) == 1


def test_a_tail_gives_each_whole_line_once_while_the_file_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "TAIL_BYTES", 40)  # less than a line: parts are put together
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.new() is None
    lines = JsonLines(path, 1)

    def new() -> list[int]:
        steps = []
        while (records := tail.new()) is not None:
            steps += [record["step"] for record in records]
        return steps

    for step in (1, 2, 3):
        lines.append({"step": step, "train/loss": math.nan, "text": "x" * 50})
    assert new() == [1, 2, 3]
    with path.open("ab") as file:
        file.write(b'{"generation": 1, "step": 4, ')  # half of a line
        file.flush()
        assert new() == []
        file.write(b'"text": "y"}\n')
    lines.append({"step": 5})
    assert new() == [4, 5]
    assert new() == []
