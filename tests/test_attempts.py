"""`dist-alexnet attempts`: what each start of a run gained and lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.attempts import attempts


@pytest.fixture
def restarted(tmp_path: Path) -> Path:
    """0 to 12, stopped; from there to 25, killed; from a save at 20 to 30, done; and one that went nowhere between."""
    layout = {"data": 2, "replicas": 1, "columns": 2, "zero_stage": 1}

    def start(generation: int, step: int, stands_on: int | None, hosts: list[str]) -> dict[str, Any]:
        return {
            "generation": generation,
            "event": "start",
            "step": step,
            "from": stands_on,
            "time_s": 1.8e9 + generation,
            "layout": layout,
            "hosts": hosts,
        }

    def end(generation: int, step: int, cause: str, code: int) -> dict[str, Any]:
        return {
            "generation": generation,
            "event": "end",
            "step": step,
            "time_s": 1.8e9 + 60,
            "cause": cause,
            "code": code,
        }

    lines = [
        start(1, 0, None, ["n1", "n2"]),
        end(1, 12, "stopped: SIGUSR1", 75),
        start(2, 12, 1, [f"n{number}" for number in range(1, 7)]),
        start(3, 20, 2, ["n1"]),
        end(3, 20, "RuntimeError: [peer] is gone", 1),
        start(4, 20, 2, ["n1"]),
        end(4, 30, "done", 0),
    ]
    metrics = [{"generation": 2, "step": step} for step in (15, 25)]
    (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return tmp_path


def test_steps_gained_and_lost(restarted: Path) -> None:
    found = attempts(restarted)
    assert [(one.gained, one.lost) for one in found] == [(12, 0), (8, 5), (0, 0), (10, 0)]
    assert [one.cause for one in found] == ["stopped: SIGUSR1", "killed", "RuntimeError: [peer] is gone", "done"]
    assert [one.reached_step for one in found] == [12, 25, 20, 30]
    assert found[1].ended_s is None


def test_a_start_that_went_back_lost_everything(restarted: Path) -> None:
    """Started anew from an older checkpoint: what lay beyond it no longer counts."""
    line = {"generation": 5, "event": "start", "step": 5, "from": 1, "time_s": 1.8e9, "layout": {}, "hosts": []}
    with (restarted / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    found = attempts(restarted)
    assert [(one.gained, one.lost) for one in found] == [(5, 7), (0, 13), (0, 0), (0, 10), (0, 0)]
    assert found[-1].cause == "running, or killed"


def test_the_table(restarted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attempts", str(restarted)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    killed = next(row for row in rows if row[0] == "2")
    assert "n1 and 5 more 4 12 to 25 8 5 killed" in " ".join(killed)
    assert any("RuntimeError: [peer] is gone (1)" in " ".join(row) for row in rows)


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attempts", str(tmp_path)]) == 2
    assert "holds no attempts.jsonl" in capsys.readouterr().err


def test_a_start_that_was_rolled_back(restarted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has an end without an exit code: the same processes went on."""
    lines = [
        {
            "generation": 4,
            "event": "end",
            "step": 30,
            "time_s": 1.8e9 + 60,
            "cause": "rolled back: step 31",
            "code": None,
        },
        {"generation": 5, "event": "start", "step": 20, "from": 2, "time_s": 1.8e9 + 61},
    ]
    with (restarted / "attempts.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    rolled_back, newest = attempts(restarted)[-2:]
    assert (rolled_back.cause, rolled_back.code, rolled_back.gained, rolled_back.lost) == (
        "rolled back: step 31",
        None,
        0,
        10,
    )
    assert newest.first_step == 20
    assert run(["attempts", str(restarted)]) == 0
    assert "rolled back: step 31" in capsys.readouterr().out
