"""A run that stands still ends by itself and says who holds it up; and one that is only slow is left alone.

Ranks are forked from one process that has imported everything, and all cases run at once: most of them only wait.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.track.jsonl import read_lines
from tests.ranks.harness import ROOT, environment, keys_by_position, losses, tensors, torchrun

HANG_S = 5.0
STEPS = 8
LENGTH = (f"run.steps={STEPS}", "checkpoint.every_steps=2", "checkpoint.async=false", f"guard.hang_s={HANG_S}")
HOST = re.escape(os.uname().nodename)
AT = 5  # the step that does not end: step 4 is saved
LIMIT_S = 120


@dataclass
class Hang:
    """A fault, its launcher, and what is said of it: a pattern for the one line, and the ranks that leave stacks."""

    fault: list[Any]
    said: str
    stacks: tuple[int, ...] = (0, 1)
    ranks: int = 2
    torchrun: bool = False
    overrides: tuple[str, ...] = ()
    pids: list[int] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None


HANGS = {
    "stopped-1": Hang(
        ["stopped", 1, AT],
        rf"rank 1 on host {HOST}: silent for \d+ s and more, last in \w+, step \d; waiting: rank 0 in reduce",
        stacks=(0,),
    ),
    "stopped-0": Hang(
        ["stopped", 0, AT],
        rf"rank 0 on host {HOST}: silent for \d+ s and more, as is the store .* waiting: rank 1 in reduce, step {AT}",
        stacks=(1,),
    ),
    "torchrun-stopped-0": Hang(
        ["stopped", 0, AT],
        rf"rank 0 on host {HOST}: silent for \d+ s and more, last in \w+, step \d; waiting: rank 1 in reduce",
        stacks=(1,),
        torchrun=True,
    ),
    "no-batch": Hang(
        ["no_batch", 1, AT],
        rf"rank 1 on host {HOST}: in load since \d+ s, shards? .*train-00000\d\.tar.*, step {AT}, at "
        r"dist_alexnet/data/feed\.py:\d+ \(__next__\); waiting: rank 0 in reduce",
    ),
    "columns-stuck": Hang(
        ["stuck", 1, AT],
        rf"rank 1 on host {HOST}: in reduce since \d+ s, step {AT}, at dist_alexnet/train\.py:\d+ \(_step\); "
        "waiting: rank 0 in reduce",
        overrides=("parallel.columns=2",),
    ),
    "lost": Hang(
        ["lost_in_collectives", 1, AT],
        rf"the ranks wait in collectives that do not belong together: rank 0 on host {HOST}: in reduce .*; "
        rf"rank 1 on host {HOST}: in reduce .*",
    ),
    "alone": Hang(["no_batch", 0, AT], rf"rank 0 on host {HOST}: in load since \d+ s, .*", stacks=(0,), ranks=1),
}


WELL: dict[str, tuple[list[Any], tuple[str, ...]]] = {  # runs that end by themselves: (fault, overrides)
    "data": (["none"], ()),
    "columns": (["none"], ("parallel.columns=2",)),
    "slow": (["slow", 0.4, HANG_S + 2, HANG_S + 2], ("evaluate.batch_size=2", "checkpoint.every_steps=100")),
    "straggling": (["straggling", 1, 0.4], ("log.every_steps=2",)),
}


class Nursery:
    """The process that forks ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks.hang_cases"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pids: list[int] = []

    def _ask(self, asked: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, name: str, fault: list[Any], arguments: list[str], ranks: int) -> list[int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environ = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        said = str(self.folder / name)
        start = {"said": said, "fault": fault, "arguments": arguments, "ranks": ranks}
        pids: list[int] = self._ask({"start": {**start, "environ": {**environ, "MASTER_PORT": port}}})
        self.pids += pids
        return pids

    def codes(self, pids: list[int]) -> list[int | None]:
        found: list[int | None] = self._ask({"poll": pids})
        return found

    def said(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"{name}-?.txt")))

    def ended(self, name: str, pids: list[int], limit_s: float = LIMIT_S) -> list[int]:
        until_s = time.monotonic() + limit_s
        while None in (codes := self.codes(pids)):
            assert time.monotonic() < until_s, f"{name} has not ended, {codes}:\n{self.said(name)[-4000:]}"
            time.sleep(0.1)
        return [code for code in codes if code is not None]

    def close(self) -> None:
        for pid, code in zip(self.pids, self.codes(self.pids), strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("hangs"))
    yield nursery
    nursery.close()


def wait_for(condition: Callable[[], bool], said: Callable[[], str], limit_s: float = LIMIT_S) -> None:
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, said()[-4000:]
        time.sleep(0.05)


def arguments_of(config: Path, name: str) -> list[str]:
    hang = HANGS.get(name)
    return ["train", str(config), f"run.name={name}", *LENGTH, *(hang.overrides if hang else ())]


@pytest.fixture(scope="module")
def started(nursery: Nursery, config: Path, well: dict[str, list[int]]) -> Iterator[dict[str, Hang]]:
    """All at once."""
    for name, hang in HANGS.items():
        if hang.torchrun:
            module = ["-m", "tests.ranks.hang_cases", json.dumps(hang.fault)]
            environ = {key: value for key, value in environment().items() if "RDZV" not in key}  # the agent's store
            hang.process = subprocess.Popen(
                torchrun(hang.ranks, *module, *arguments_of(config, name)),
                cwd=ROOT,
                env=environ,
                stdout=(nursery.folder / f"{name}-0.txt").open("w"),
                stderr=subprocess.STDOUT,
                text=True,
            )
    for name, (fault, over) in WELL.items():
        well[name] = nursery.start(name, fault, [*arguments_of(config, name), *over], 2)
    for name, hang in HANGS.items():
        if not hang.torchrun:
            hang.pids = nursery.start(name, hang.fault, arguments_of(config, name), hang.ranks)
    yield HANGS
    for hang in HANGS.values():
        if hang.process is not None:
            hang.process.terminate()  # which ends its ranks, too; most often there is nothing left to end


@pytest.fixture(scope="module")
def well() -> dict[str, list[int]]:
    """The ranks of the runs in WELL."""
    return {}


@pytest.fixture(scope="module")
def whole(nursery: Nursery, runs: Path, started: dict[str, Hang], well: dict[str, list[int]]) -> dict[str, Path]:
    """The unbroken run of each layout."""
    for name in ("data", "columns"):
        assert nursery.ended(name, well[name]) == [0, 0], nursery.said(name)
        assert "TCPStore" not in nursery.said(name)  # whoever ends last greets a store that is gone
    return {name: runs / name for name in ("data", "columns")}


@pytest.mark.parametrize("name", HANGS)
def test_a_hang_is_named_and_ended(
    nursery: Nursery, config: Path, runs: Path, started: dict[str, Hang], whole: dict[str, Path], name: str
) -> None:
    hang, run = started[name], runs / name
    if hang.process is not None:
        wait_for((run / "outcome.json").exists, lambda: nursery.said(name))
        children = Path(f"/proc/{hang.process.pid}/task/{hang.process.pid}/children")
        for pid in children.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)  # or torchrun would wait 30 s for the one that is stopped
        assert hang.process.wait(LIMIT_S) != 0, nursery.said(name)
    else:
        stands = hang.fault[1] if hang.fault[0] == "stopped" else None
        left = [pid for rank, pid in enumerate(hang.pids) if rank != stands]
        assert nursery.ended(name, left) == [1] * len(left)
        if stands is not None:  # woken, it finds the others gone, and harms nothing
            os.kill(hang.pids[stands], signal.SIGCONT)
            assert nursery.ended(name, [hang.pids[stands]]) == [1], nursery.said(name)
    said = nursery.said(name)
    lines = [line for line in said.splitlines() if line.startswith("error: ") and "no progress for" in line]
    lines = [line for line in lines if "another rank failed first" not in line]
    assert len(lines) == 1, said
    assert re.search(rf"no progress for \d+ s: {hang.said}", lines[0]), lines[0]
    check_written(run, lines[0], hang)
    assert HANG_S < detected_s(run) < 3 * HANG_S
    go_on(nursery, config, run, hang, whole)


def check_written(run: Path, line: str, hang: Hang) -> None:
    """The cause, one end, and the stacks of every rank that could still move."""
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["generation"] == 1
    assert outcome["code"] == 1
    assert line.endswith(outcome["cause"])
    (end,) = [line for line in read_lines(run / "attempts.jsonl") if line["event"] == "end"]
    assert (end["cause"], end["code"], end["step"]) == (outcome["cause"], 1, AT - 1)
    assert (run / "logs" / "cause-g0001.txt").read_text() == outcome["cause"]
    for rank in range(hang.ranks):
        stacks = run / "logs" / f"stacks-g0001-rank-{rank:05d}.txt"
        if rank in hang.stacks:
            text = stacks.read_text()
            assert "most recent call first" in text
            assert "_story" in text
            json.loads((run / "logs" / f"flight-g0001-rank-{rank:05d}-cpu.json").read_text())


def detected_s(run: Path) -> float:
    """From the last line of metrics to the end."""
    (end,) = [line for line in read_lines(run / "attempts.jsonl") if line["event"] == "end"]
    return float(end["time_s"]) - (run / "metrics.jsonl").stat().st_mtime


def go_on(nursery: Nursery, config: Path, run: Path, hang: Hang, whole: dict[str, Path]) -> None:
    """The next start ends as if nothing had been."""
    pids = nursery.start(f"{run.name}-again", ["none"], arguments_of(config, run.name), hang.ranks)
    assert nursery.ended(f"{run.name}-again", pids) == [0] * hang.ranks, nursery.said(f"{run.name}-again")
    assert json.loads((run / "outcome.json").read_text()) == {"generation": 2, "cause": "done", "code": 0}
    if hang.ranks == 2:
        as_whole(run, whole["columns" if hang.overrides else "data"])


def as_whole(run: Path, whole: Path) -> None:
    here, there = tensors(run), tensors(whole)
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert losses(run) == losses(whole)
    assert keys_by_position(run) == keys_by_position(whole)


def test_slow_is_no_hang(nursery: Nursery, runs: Path, well: dict[str, list[int]], whole: dict[str, Path]) -> None:
    """An evaluation and a save longer than hang_s, and all ranks stopped for longer than that and woken."""
    assert nursery.ended("slow", well["slow"]) == [0, 0], nursery.said("slow")
    assert not list((runs / "slow").glob("logs/stacks*"))
    as_whole(runs / "slow", whole["data"])


def test_a_straggler_is_named_once(nursery: Nursery, runs: Path, well: dict[str, list[int]], whole: object) -> None:
    assert nursery.ended("straggling", well["straggling"]) == [0, 0], nursery.said("straggling")
    said = nursery.said("straggling")
    assert len(re.findall(rf"^rank 1 \({HOST}\) is slow: load 0\.4\d* s a step, others 0", said, re.MULTILINE)) == 1
    lines = [line for line in read_lines(runs / "straggling" / "metrics.jsonl") if "train/loss" in line]
    assert [line.get("time/slowest_rank") for line in lines] == [None, 1, 1, 1]
    assert all(line["time/load_max_s"] >= 0.4 and line["time/load_max_s"] > line["time/load_s"] for line in lines)
    (table,) = read_lines(runs / "straggling" / "logs" / "stragglers.jsonl")
    assert table["step"] == 4
    (first, second) = table["ranks_s"]
    assert second[table["phases"].index("load")] >= 0.4 > first[table["phases"].index("load")]
