"""A start that was frozen in its save and wakes late, beside the one that has taken its place."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.finding import committed_in, root_of
from dist_alexnet.checkpoint.flat import FlatWriter
from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Checkpoint
from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.track.jsonl import live_lines, read_lines, starts
from tests.checkpoint.states import empty, fragments
from tests.ranks.harness import ROOT, Case, environment, keys_by_position, sightings, tensors

FACTS: dict[str, Any] = {"layout": {}, "versions": {}, "state": {}}


def _freeze(mark: Path) -> None:
    """Say which process stands still, and do."""
    mark.write_text(str(os.getpid()))
    signal.pthread_kill(
        threading.get_ident(), signal.SIGSTOP
    )  # sent to the process, it lets this thread run on a little


def _writer(run: Path, where: str, mark: Path) -> None:
    """Generation 1 in a process of its own: good at step 10, frozen in the save of step 20, later at 30."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    saver = Saver(run, Checkpoint(keep=1))
    saver.save(fragments(0.1), step=10, generation=1, **FACTS)
    saver.wait()
    owner, name = (FlatWriter, "write_data") if where == "chunks" else (store, "_commit")
    goes_on = getattr(owner, name)

    def late(*given: Any) -> Any:
        if not mark.exists():
            _freeze(mark)
        return goes_on(*given)

    setattr(owner, name, late)
    saver.save(fragments(0.1), step=20, generation=1, **FACTS)
    saver.finish()
    assert saver.news() == []
    if where == "further":
        saver.save(fragments(0.1), step=30, generation=1, **FACTS)
        saver.finish()


@pytest.fixture
def process() -> Iterator[list[BaseProcess]]:
    started: list[BaseProcess] = []
    yield started
    for one in started:
        one.kill()
        one.join()


def start_frozen(process: list[BaseProcess], run: Path, where: str) -> BaseProcess:
    """A `_writer` that stands still."""
    mark = run / "frozen"
    one = multiprocessing.get_context("spawn").Process(target=_writer, args=(run, where, mark))
    process.append(one)
    one.start()
    _wait_until_stopped(mark, one)
    return one


def _wait_until_stopped(mark: Path, one: "BaseProcess | subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if mark.exists() and mark.read_text() and " T " in Path(f"/proc/{one.pid}/stat").read_text():
            return
        assert one.is_alive() if isinstance(one, BaseProcess) else one.poll() is None, "it ended before it was frozen"
        time.sleep(0.05)
    raise AssertionError("it was not frozen")


def wake(one: BaseProcess) -> None:
    assert one.pid is not None
    os.kill(one.pid, signal.SIGCONT)
    one.join(120)
    assert one.exitcode == 0


def newest(run: Path) -> tuple[int, int, float]:
    """(step, generation, by what it is filled)"""
    found, passed = store.newest_good(run)
    assert found is not None
    assert passed == []
    parts = empty(fragments())
    store.load(found, parts)
    return found.commit.step, found.commit.generation, round(parts[0].values[0].item(), 3)


def names(run: Path) -> list[str]:
    root = root_of(run)
    return [folder.url.removeprefix(f"{root.url}/") for folder in committed_in(root)]


@pytest.mark.parametrize("where", ["chunks", "commit"])
def test_a_writer_that_wakes_late_changes_nothing(
    alone: Mesh, tmp_path: Path, process: list[BaseProcess], where: str
) -> None:
    """Generation 2 saves the same step meanwhile: its bytes are what is found, before and after the other wakes."""
    old = start_frozen(process, tmp_path, where)
    assert newest(tmp_path) == (10, 1, 0.1)
    store.save(tmp_path, fragments(0.2), step=20, generation=2, **FACTS)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").glob("*/g0002/*")}
    assert newest(tmp_path) == (20, 2, 0.2)
    wake(old)
    assert names(tmp_path) == ["step-00000020/g0002", "step-00000020/g0001"]
    assert newest(tmp_path) == (20, 2, 0.2)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").glob("*/g0002/*")} == before
    (tmp_path / "checkpoints" / "latest").write_text("step-00000099/g0009\n")  # a hint, never read
    assert newest(tmp_path) == (20, 2, 0.2)


def test_what_it_removes_is_never_its_successors(alone: Mesh, tmp_path: Path, process: list[BaseProcess]) -> None:
    """It goes on to step 30 and keeps one: the only checkpoint of generation 2, at step 15, is not its to remove."""
    old = start_frozen(process, tmp_path, "further")
    store.save(tmp_path, fragments(0.2), step=15, generation=2, **FACTS)
    wake(old)
    assert names(tmp_path) == ["step-00000030/g0001", "step-00000015/g0002"]
    saver = Saver(tmp_path, Checkpoint(keep=1, background=False))
    saver.save(fragments(0.2), step=30, generation=2, **FACTS)
    assert names(tmp_path) == ["step-00000030/g0002", "step-00000030/g0001"]
    assert newest(tmp_path) == (30, 2, 0.2)


def test_a_commit_to_files_that_were_removed(alone: Mesh, tmp_path: Path, process: list[BaseProcess]) -> None:
    """Its successor has gone on and made room: what the late COMMIT vouches for is gone, and it is passed over."""
    old = start_frozen(process, tmp_path, "commit")
    saver = Saver(tmp_path, Checkpoint(keep=1, background=False))
    saver.save(fragments(0.2), step=30, generation=2, **FACTS)
    assert names(tmp_path) == ["step-00000030/g0002"]
    wake(old)
    assert newest(tmp_path) == (30, 2, 0.2)
    folders = committed_in(root_of(tmp_path))
    assert [store.is_whole(folder) for folder in folders] == [True, *[False] * (len(folders) - 1)]


def test_two_starts_of_one_run(config: Path, runs: Path, tmp_path: Path) -> None:
    """Training itself: the first start is frozen before COMMIT of step 10, a second runs from 5 to the end.

    Then the first wakes and trains to the end, too. Every line says whose it is, and each sample counts once.
    """
    over = ("run.name=fenced", "run.steps=15", "checkpoint.every_steps=5", "checkpoint.keep=1")
    mark = tmp_path / "frozen"
    old = _start(config, Case("fenced-old", over, "frozen_in_save", {"step": 10, "mark": str(mark)}))
    try:
        _wait_until_stopped(mark, old)
        new = _start(config, Case("fenced-new", over))
        assert new.wait(timeout=240) == 0, new.stderr
        run = runs / "fenced"
        outcome = json.loads((run / "outcome.json").read_text())
        assert (outcome["generation"], outcome["code"]) == (2, 0)
        before = tensors(run)
        os.kill(old.pid, signal.SIGCONT)
        assert old.wait(timeout=240) == 0
    finally:
        old.kill()
        old.wait()
    assert names(run)[0] == "step-00000015/g0002"
    after = tensors(run)
    assert all(torch.equal(after[key], before[key]) for key in before)
    started = starts(run / "attempts.jsonl")
    assert {number: start.step for number, start in started.items()} == {1: 0, 2: 5}
    for path in (run / "metrics.jsonl", run / "attempts.jsonl", *run.glob("keys/*.jsonl"), *run.glob("ledger.jsonl")):
        assert {line["generation"] for line in read_lines(path)} == {1, 2}
    steps = [line["step"] for line in live_lines(run / "metrics.jsonl", started) if "train/loss" in line]
    assert steps == list(range(1, 16))
    assert sightings(run, 1) == dict.fromkeys(range(15 * 24), 1)
    assert len(keys_by_position(run)) == 15 * 24
    assert json.loads((run / "outcome.json").read_text()) == outcome


def _start(config: Path, case: Case) -> subprocess.Popen[bytes]:
    """One case in a process of its own, without a launcher."""
    listed = config.with_name(f"{case.name}.json")
    listed.write_text(json.dumps([asdict(case)]))
    command = [sys.executable, "-m", "tests.ranks.cases", str(config), str(listed)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
