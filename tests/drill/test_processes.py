"""Processes of a start are found and ended, wherever their parents have gone."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dist_alexnet.drill.processes import Start, end_all, processes_with

# A launcher with two ranks in sessions of their own, each with a child of its own that carries its number, too.
TREE = """
import os, subprocess, sys, time
rank = [sys.executable, "-c", "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"]
for number in range(2):
    subprocess.Popen(rank, env={**os.environ, "RANK": str(number)}, start_new_session=True)
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    begun = Start([sys.executable, "-c", TREE], tmp_path / "logs" / "1.log", str(tmp_path), {})
    until_s = time.monotonic() + 60
    while len(processes_with(begun.mark)) < 5:  # the launcher, two ranks, two children
        assert time.monotonic() < until_s
        time.sleep(0.02)
    return begun


def test_ranks_are_told_from_what_they_start(start: Start) -> None:
    try:
        assert sorted(start.ranks()) == [0, 1]
        assert start.said("started")
        assert not start.said("ended")
        assert not start.wait(0.1)
    finally:
        end_all(start.mark, start)


def test_nothing_is_left_behind_when_the_launcher_is_gone(start: Start) -> None:
    start.launcher.send_signal(signal.SIGKILL)
    start.launcher.wait(10)
    assert not start.running
    assert len(processes_with(start.mark)) == 4
    assert sorted(start.ranks()) == [0, 1]
    end_all(start.mark, start)
    assert processes_with(start.mark) == {}
    assert start.wait(0.1)


def test_frozen_processes_end_too(start: Start) -> None:
    for pid in start.ranks().values():
        os.kill(pid, signal.SIGSTOP)
    end_all(start.mark, start)
    assert processes_with(start.mark) == {}
