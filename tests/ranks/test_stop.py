"""Asked to stop, a run saves, says so, and goes on when it is started again, as if nobody had asked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dist_alexnet.track.jsonl import live_lines, read_lines, starts
from tests.ranks.harness import ROOT, Case, environment, keys_by_position, losses, run_cases, tensors, torchrun

COLUMNS = "parallel.columns=2"
LENGTH = ("run.steps=30", COLUMNS, "data.workers=1")


def start(config: Path, *overrides: str, world: int = 2) -> subprocess.Popen[str]:
    launcher = torchrun(world, "-m", "dist_alexnet") if world > 1 else [sys.executable, "-m", "dist_alexnet"]
    return subprocess.Popen(
        [*launcher, "train", str(config), *overrides],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int, generation: int = 1) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        assert process.poll() is None, process.stdout and process.stdout.read()
        lines = [line for line in read_lines(run / "metrics.jsonl") if line["generation"] == generation]
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"step {step} was not reached")


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """rank -> pid, of the processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = int(child)
    return found


def outcome(run: Path) -> dict[str, object]:
    return json.loads((run / "outcome.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(config: Path, runs: Path) -> Path:
    run_cases(2, config, [Case("stop-whole", LENGTH)])
    return runs / "stop-whole"


def as_if_nobody_had_asked(run: Path, whole: Path) -> None:
    here, there = tensors(run), tensors(whole)
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert keys_by_position(run) == keys_by_position(whole)
    assert losses(run) == losses(whole)


def go_on(config: Path, name: str) -> None:
    done = start(config, f"run.name={name}", *LENGTH)
    out, _ = done.communicate(timeout=180)
    assert done.returncode == 0, out
    assert "resumed from" in out
    assert "samples to be replayed: 0; layout and settings are the same" in out


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    config: Path, runs: Path, whole: Path, number: signal.Signals
) -> None:
    """Under torchrun: exit 0, code 75 in outcome.json. The signal reaches the rank's loader workers, too."""
    name = f"stopped-{number.name}"
    process = start(config, f"run.name={name}", *LENGTH)
    wait_for_step(process, runs / name, 4)
    rank = ranks_of(process)[1]
    workers = workers_of(rank)
    assert workers
    for pid in [*workers, rank]:
        os.kill(pid, number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert f"stopped on request ({number.name})" in out
    assert outcome(runs / name) == {"generation": 1, "cause": f"stopped: {number.name}", "code": 75}
    stopped_at = read_lines(runs / name / "attempts.jsonl")[-1]["step"]
    assert 4 <= stopped_at < 30
    assert f"step-{stopped_at:08d}" in (runs / name / "checkpoints" / "latest").read_text()
    go_on(config, name)
    assert starts(runs / name / "attempts.jsonl")[2].step == stopped_at  # nothing is done twice
    as_if_nobody_had_asked(runs / name, whole)


def workers_of(rank: int) -> list[int]:
    """The rank's processes: the server that starts loader workers, and these."""
    found = []
    for child in Path(f"/proc/{rank}/task/{rank}/children").read_text().split():
        found += [int(child), *workers_of(int(child))]
    return found


def test_a_bare_process_ends_with_75_and_goes_on(config: Path, runs: Path) -> None:
    length = ("run.name=stopped-bare", "run.steps=400")
    process = start(config, *length, world=1)
    wait_for_step(process, runs / "stopped-bare", 3)
    (runs / "stopped-bare" / "stop").touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75, out
    assert "stopped on request (the file stop in the run folder)" in out
    again = start(config, *length, world=1)
    out, _ = again.communicate(timeout=180)
    assert again.returncode == 0, out
    assert not (runs / "stopped-bare" / "stop").exists()
    steps = [line["step"] for line in live_lines(*_metrics(runs / "stopped-bare")) if "train/loss" in line]
    assert steps == list(range(1, 401))


def _metrics(run: Path) -> tuple[Path, dict[int, object]]:
    return run / "metrics.jsonl", starts(run / "attempts.jsonl")  # type: ignore[return-value]


def test_the_minutes_are_over(config: Path, runs: Path) -> None:
    """run.max_minutes, in starts that get about two seconds each: they finish the run between them."""
    length = ("run.name=stopped-minutes", "run.steps=30", "run.max_minutes=0.15")
    codes = []
    while not codes or codes[-1] == 75:
        process = start(config, *length, world=1)
        out, _ = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert len(codes) < 20, out
    assert codes[-1] == 0
    steps = [line["step"] for line in live_lines(*_metrics(runs / "stopped-minutes")) if "train/loss" in line]
    assert steps == list(range(1, 31))


EVALUATED = ("evaluate.every_steps=6", "evaluate.batch_size=1", "schedule.name=plateau")


def judged(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["val/loss"]) for line in live_lines(*_metrics(run)) if "val/loss" in line]


@pytest.fixture(scope="module")
def evaluated(config: Path, runs: Path) -> Path:
    run_cases(1, config, [Case("evaluated-whole", (*EVALUATED, "run.steps=12"))])
    return runs / "evaluated-whole"


@pytest.mark.parametrize(("steps", "asked_at"), [(12, 6), (12, 12), (10, 10)], ids=["due", "last", "made-longer"])
def test_asked_during_an_evaluation(config: Path, runs: Path, evaluated: Path, steps: int, asked_at: int) -> None:
    """It is broken off, the step is saved, and the next start does the evaluation first, if it still is to be done."""
    name = f"stopped-evaluation-{steps}-{asked_at}"
    over = (*EVALUATED, f"run.steps={steps}")
    run_cases(1, config, [Case(name, over, "stopped_in_evaluation", {"step": asked_at})])
    assert outcome(runs / name)["code"] == 75
    assert asked_at not in [step for step, _ in judged(runs / name)]
    run_cases(1, config, [Case(name, (*EVALUATED, "run.steps=12"))])
    assert outcome(runs / name) == {"generation": 2, "cause": "done", "code": 0}
    assert judged(runs / name) == judged(evaluated)
    assert [step for step, _ in judged(evaluated)] == [6, 12]
    assert losses(runs / name) == losses(evaluated)


def test_a_signal_to_all_processes_of_a_job_is_one_request(config: Path, runs: Path) -> None:
    """Slurm and systemd tell torchrun and its ranks; torchrun hands it on, so each rank hears it twice."""
    name = "stopped-job"
    process = start(config, f"run.name={name}", "run.steps=3000")
    wait_for_step(process, runs / name, 4)
    for pid in [*ranks_of(process).values(), process.pid]:
        os.kill(pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert outcome(runs / name) == {"generation": 1, "cause": "stopped: SIGTERM", "code": 75}, out
    step = read_lines(runs / name / "attempts.jsonl")[-1]["step"]
    assert (runs / name / "checkpoints" / f"step-{step:08d}" / "g0001" / "COMMIT").exists()


@pytest.mark.parametrize("steps", [30, 4], ids=["asked", "done"])
def test_no_rank_leaves_before_the_end_is_written_down(config: Path, runs: Path, steps: int) -> None:
    """Slurm ends what is left of a step of which one task has ended with 75, so rank 0 must have said so by then."""
    name = f"slow-to-say-so-{steps}"
    run_cases(2, config, [Case(name, (f"run.steps={steps}",), "slow_to_say_so", {"step": 3 if steps == 30 else 9})])
    assert [json.loads((runs / f"{name}-{rank}.json").read_text()) for rank in range(2)] == [True, True]


def test_asked_twice_it_ends_at_once(config: Path, runs: Path) -> None:
    name = "stopped-twice"
    process = start(config, f"run.name={name}", "run.steps=3000", "checkpoint.every_steps=5", world=1)
    wait_for_step(process, runs / name, 7)
    process.send_signal(signal.SIGSTOP)  # so that both are there before the first is answered
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    again = start(config, f"run.name={name}", "run.steps=12", world=1)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert "resumed from" in out


def test_saved_by_the_clock_and_what_is_kept(config: Path, runs: Path) -> None:
    """Saves by minutes; multiples, the best and the newest stay."""
    over = (
        "run.steps=24",
        "checkpoint.every_minutes=0.000000001",
        "checkpoint.keep=2",
        "checkpoint.keep_every_steps=8",
        "evaluate.every_steps=5",
    )
    run_cases(2, config, [Case("by-the-clock", over)])
    run = runs / "by-the-clock"
    best = max((line["val/top1"], -line["step"]) for line in read_lines(run / "metrics.jsonl") if "val/top1" in line)
    kept = {int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")}
    assert {8, 16, 24, -best[1]} <= kept
    assert len(kept - {8, 16, 24, -best[1]}) <= 2


def test_a_save_that_fails_does_not_stop_training(config: Path, runs: Path) -> None:
    """Storage is full for the saves of steps 5 and 10: said aloud, the run goes on and the last good one stands."""
    over = (COLUMNS, "run.steps=20", "checkpoint.every_steps=5")
    run_cases(2, config, [Case("full-disk", over, "full_disk", {"steps": [5, 10]})])
    kept = {path.parent.parent.name for path in (runs / "full-disk" / "checkpoints").glob("step-*/g*/COMMIT")}
    assert kept == {"step-00000015", "step-00000020"}


def test_too_many_saves_in_a_row_that_fail_stop_it(config: Path, runs: Path) -> None:
    over = (COLUMNS, "run.steps=40", "checkpoint.every_steps=5", "checkpoint.max_failures=1")
    with pytest.raises(AssertionError, match="cannot be written"):
        run_cases(2, config, [Case("fuller-disk", over, "full_disk", {"steps": [10, 15, 20, 25]})])
    kept = {path.parent.parent.name for path in (runs / "fuller-disk" / "checkpoints").glob("step-*/g*/COMMIT")}
    assert kept == {"step-00000005"}
