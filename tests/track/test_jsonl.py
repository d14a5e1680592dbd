"""Lines that are never cut back, and which of them count."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from dist_alexnet.track.jsonl import JsonLines, live_lines, read_lines, starts


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
    write(tmp_path / "a", 0, {"event": "start", "step": 0}, {"event": "end", "step": 7})
    write(tmp_path / "a", 1, {"event": "start", "step": 5})
    assert starts(tmp_path / "a") == {0: 0, 1: 5}


def test_a_later_start_supersedes_what_it_did_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, 0, *({"step": step} for step in range(1, 8)))
    write(path, 1, *({"step": step} for step in range(6, 10)))
    write(path, 2, {"step": 4}, {"step": 5}, {"event": "no step"})
    live = live_lines(path, {0: 0, 1: 5, 2: 3})
    assert [(record["generation"], record.get("step")) for record in live] == [
        (0, 1),
        (0, 2),
        (0, 3),  # generation 2 took up after step 3
        (2, 4),
        (2, 5),
        (2, None),
    ]
    assert len(read_lines(path)) == 14


def test_an_earlier_start_supersedes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m", 1, {"step": 9})
    assert len(live_lines(tmp_path / "m", {0: 0, 1: 5})) == 1
