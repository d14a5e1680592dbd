"""Kill it anywhere: bit-equal on the same layout, no sample lost or repeated on another."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dist_alexnet.track.jsonl import Start, live_lines, read_lines, starts
from tests.ranks.harness import (
    ROOT,
    Case,
    difference,
    environment,
    keys_by_position,
    losses,
    run_cases,
    sightings,
    tensors,
    torchrun,
)

COLUMNS, REPLICAS = "parallel.columns=2", "parallel.replicas=2"
SAVING = "checkpoint.every_steps=5"


def zero(stage: int) -> str:
    return f"parallel.zero_stage={stage}"


SAVES = {  # name: (world, overrides)
    "saved-1": (1, ()),
    "saved-columns-zero-0": (2, (COLUMNS,)),
    "saved-data-zero-1": (2, (zero(1),)),
    "saved-three-zero-2": (3, (zero(2),)),
    "saved-grid-zero-0": (4, (COLUMNS, REPLICAS)),
    "saved-grid-zero-1": (4, (COLUMNS, REPLICAS, zero(1))),
    "saved-data-columns-zero-3": (4, (COLUMNS, zero(3))),
    "saved-data-replicas-zero-2": (4, (REPLICAS, zero(2))),
}
LOADS = {  # world: overrides of the layouts that take each of them up
    1: [(), (zero(3),)],
    2: [(COLUMNS, zero(1)), (REPLICAS, zero(2))],
    3: [(zero(1),)],
    4: [(COLUMNS, REPLICAS, zero(3)), (COLUMNS, REPLICAS, zero(2)), (COLUMNS, zero(0))],
}


@pytest.fixture(scope="module")
def unbroken(config: Path, runs: Path) -> Path:
    """20 steps on one rank without a stop."""
    run_cases(1, config, [Case("unbroken")])
    return runs / "unbroken"


@pytest.fixture(scope="module")
def saved(config: Path, runs: Path) -> Path:
    """10 steps on each layout of SAVES."""
    for world in (1, 2, 3, 4):
        cases = [Case(name, (*over, "run.steps=10")) for name, (ranks, over) in SAVES.items() if ranks == world]
        run_cases(world, config, cases)
    return runs


@pytest.fixture(scope="module")
def loaded(config: Path, saved: Path) -> Path:
    """Each of SAVES, loaded on each of LOADS and saved again at once."""
    for world, layouts in LOADS.items():
        cases = [
            Case(f"again-{name}-{world}-{number}", (f"run.name={name}", "run.steps=10", *over), "save_again")
            for name in SAVES
            for number, over in enumerate(layouts)
        ]
        run_cases(world, config, cases, timeout_s=600)
    return saved


@pytest.mark.parametrize("name", SAVES)
def test_any_layout_loads_the_same_bits(loaded: Path, name: str) -> None:
    """Weights and momentum of 8 saves on 8 other layouts and ZeRO stages: bit-equal."""
    here = tensors(loaded / name)
    assert len(here) == 32
    assert all(values.abs().max() > 0 for key, values in here.items() if "weight/" in key)
    for world, layouts in LOADS.items():
        for number in range(len(layouts)):
            again = tensors(loaded / f"again-{name}-{world}-{number}")
            assert again.keys() == here.keys()
            for key, values in here.items():
                assert torch.equal(again[key], values), (world, layouts[number], key)


CONTINUED = [
    ("saved-1", 4, (COLUMNS, REPLICAS)),
    ("saved-grid-zero-1", 1, ()),
    ("saved-columns-zero-0", 2, ()),
    ("saved-data-zero-1", 2, (zero(3),)),
    ("saved-data-columns-zero-3", 3, (zero(1),)),
]


def test_another_layout_goes_on(config: Path, loaded: Path, unbroken: Path) -> None:
    """4 ranks -> 1, columns -> data, ZeRO 1 -> 3: every sample once, losses and weights within 1e-4."""
    for world in (1, 2, 3, 4):
        cases = [Case(name, over) for name, ranks, over in CONTINUED if ranks == world]
        if cases:
            run_cases(world, config, cases)
    for name, _, _ in CONTINUED:
        run = loaded / name
        assert keys_by_position(run) == keys_by_position(unbroken)
        assert losses(run) == pytest.approx(losses(unbroken), rel=1e-4)
        assert difference(run, unbroken) < 1e-4
        assert [line["step"] for line in read_lines(run / "attempts.jsonl") if line["event"] == "start"] == [0, 10]


def start(world: int, config: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = torchrun(world, "-m", "dist_alexnet", "train", str(config), *overrides)
    marked = {**environment(), "OF_THIS_START": str(config)}
    return subprocess.Popen(command, cwd=ROOT, env=marked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def left_over(config: Path) -> list[str]:
    """Command lines of processes that some `start` of this test session began and that are still there."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"OF_THIS_START={config}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # gone, or not ours
            continue
    return found


def kill_a_rank_at(process: subprocess.Popen[bytes], run: Path, generation: int, step: int, rank: int) -> int:
    """SIGKILL one rank once `step` is in the metrics of that start; returns the step it had come to."""
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
        lines = [line for line in read_lines(run / "metrics.jsonl") if line["generation"] == generation]
        if lines and lines[-1]["step"] >= step:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ranks = {environ_rank(int(child)): int(child) for child in children}
            os.kill(ranks[rank], signal.SIGKILL)
            assert process.wait(timeout=60) != 0
            return int(lines[-1]["step"])
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached")


def environ_rank(pid: int) -> int | None:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(entry[5:]) for entry in variables if entry.startswith(b"RANK=")), None)


@pytest.mark.parametrize(
    ("world", "layout"), [(2, (COLUMNS,)), (2, (zero(1), "data.workers=1"))], ids=["columns", "data-zero-1"]
)
def test_killed_and_taken_up_bit_for_bit(config: Path, runs: Path, world: int, layout: tuple[str, ...]) -> None:
    """One rank is killed at a random step, twice; on the same layout the end is the unbroken run's, bit for bit."""
    length = (SAVING, "run.steps=40", *layout)
    name = f"killed-{world}-{len(layout)}"
    whole = start(world, config, f"run.name={name}-whole", *length)
    assert whole.wait(timeout=180) == 0
    seed = int.from_bytes(os.urandom(2), "little")
    print("seed", seed)  # shown when it fails
    at = sorted(random.Random(seed).sample(range(2, 36), 2))
    reached = [
        kill_a_rank_at(start(world, config, f"run.name={name}", *length), runs / name, generation, step, rank)
        for generation, (step, rank) in enumerate(zip(at, (1, 0), strict=True), start=1)
    ]
    last = start(world, config, f"run.name={name}", *length)
    assert last.wait(timeout=180) == 0
    here, there = tensors(runs / name), tensors(runs / f"{name}-whole")
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert keys_by_position(runs / name) == keys_by_position(runs / f"{name}-whole")
    columns = 2 if COLUMNS in layout else 1
    assert sightings(runs / name, columns) == dict.fromkeys(range(40 * 24), 1)
    assert losses(runs / name) == losses(runs / f"{name}-whole")
    started = starts(runs / name / "attempts.jsonl")
    assert sorted(started) == [1, 2, 3]
    assert started[1].stands_on is None
    deadline_s = time.monotonic() + 15
    while left_over(config) and time.monotonic() < deadline_s:  # loader workers of a killed rank end with it
        time.sleep(0.2)
    assert left_over(config) == []
    assert all(started[g].step % 5 == 0 for g in (1, 2, 3))
    # a resumed start stands at a checkpoint at most every_steps behind (the one being written may not have counted)
    assert all(reached[g - 2] - 10 <= started[g].step <= reached[g - 2] + 5 for g in (2, 3))


def test_killed_and_taken_up_elsewhere(config: Path, runs: Path) -> None:
    """Two columns under ZeRO 1 lose a rank, one process under ZeRO 3 goes on: every sample once."""
    length = (SAVING, "run.steps=30")
    run_cases(1, config, [Case("elsewhere-whole", length)])
    step = int.from_bytes(os.urandom(2), "little") % 20 + 6
    print("killed at", step)  # shown when it fails
    kill_a_rank_at(start(2, config, "run.name=elsewhere", *length, COLUMNS, zero(1)), runs / "elsewhere", 1, step, 1)
    run_cases(1, config, [Case("elsewhere", (*length, zero(3)))])
    assert keys_by_position(runs / "elsewhere") == keys_by_position(runs / "elsewhere-whole")
    assert losses(runs / "elsewhere") == pytest.approx(losses(runs / "elsewhere-whole"), rel=1e-4)
    assert difference(runs / "elsewhere", runs / "elsewhere-whole") < 1e-4
    assert [start.step > 0 for start in starts(runs / "elsewhere" / "attempts.jsonl").values()] == [False, True]


@pytest.mark.parametrize(("where", "rank"), [("data", 1), ("data", 0), ("commit", 0)])
def test_killed_in_a_save(config: Path, runs: Path, where: str, rank: int) -> None:
    """A rank dies while step 10 is being saved: step 5 is what the next start takes up, and the end is the same."""
    name = f"torn-{where}-{rank}"
    over = (COLUMNS, SAVING, "run.steps=15")
    extra = {"where": where, "step": 10, "rank": rank}
    with pytest.raises(AssertionError):
        run_cases(2, config, [Case(name, over, "killed_in_save", extra)], timeout_s=120)
    assert (runs / name / "checkpoints" / "step-00000010" / "g0001").is_dir()
    run_cases(2, config, [Case(name, over)])
    assert starts(runs / name / "attempts.jsonl") == {1: Start(0, None), 2: Start(5, 1)}
    whole = Case(f"{name}-whole", over)
    run_cases(2, config, [whole])
    here, there = tensors(runs / name), tensors(runs / whole.name)
    assert all(torch.equal(here[key], there[key]) for key in there)


def test_a_damaged_checkpoint_is_passed_over(config: Path, runs: Path) -> None:
    """A flipped byte in the newest step: the one before is taken up, and it is said why; the metrics go on."""
    run_cases(2, config, [Case("flipped-bit", (COLUMNS, SAVING, "run.steps=10"))])
    run = runs / "flipped-bit"
    victim = sorted((run / "checkpoints" / "step-00000010" / "g0001").glob("*.distcp"))[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    over = ("run.name=flipped-bit", "run.steps=12", SAVING, COLUMNS)
    command = torchrun(2, "-m", "dist_alexnet", "train", str(config), *over)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "another sha256" in done.stdout
    assert starts(run / "attempts.jsonl") == {1: Start(0, None), 2: Start(5, 1)}
    steps = [line["step"] for line in live_lines(run / "metrics.jsonl", starts(run / "attempts.jsonl"))]
    assert sorted(set(steps)) == list(range(1, 13))
