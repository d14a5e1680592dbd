"""What a long run meets while nobody looks: a rank that fails alone, kills and restarts, divergence, damage, rot."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.__main__ import run
from dist_alexnet.track.jsonl import Start, live_lines, read_lines, starts
from shards.index import read_index
from shards.reader import ShardReader
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
from tests.ranks.night_cases import contents
from tests.ranks.pictures import TORN

STEPS = 8
LENGTH = (f"run.steps={STEPS}", "checkpoint.every_steps=2")
LAYOUTS = {"data": (), "columns": ("parallel.columns=2",)}
HUGE = ("optimizer.lr=1e6", "checkpoint.every_steps=1", "log.every_steps=50", f"run.steps={STEPS}")
SPOILED = ("checkpoint.every_steps=1", "log.every_steps=50", f"run.steps={STEPS}")
CHAIN = ("checkpoint.every_steps=5", "run.name=chain")
REFUSED = {  # what one rank alone sees: (fault, what rank 0 says)
    "index": (["index_hidden_from", 1], "/nowhere"),
    "config": (["config_hidden_from", 1], "/nowhere"),
    "config-of-rank-0": (["config_hidden_from", 0], "/nowhere"),
    "other-config": (["config_older_on", 1], "different configs"),
}


def zero(stage: int) -> str:
    return f"parallel.zero_stage={stage}"


def night_cases(config: Path, runs: Path) -> list[Case]:
    """All that ranks of one start can do in turn."""

    def command(name: str, fault: list[Any], *arguments: str) -> Case:
        return Case(name, (), "faulty_command", {"fault": fault, "arguments": ["train", str(config), *arguments]})

    def trained(name: str, over: tuple[str, ...], *fault: Any, resume: str = "auto") -> Case:
        return Case(name, over, "faulty_train", {"fault": list(fault) or ["none"], "resume": resume})

    steps = runs / "chain" / "checkpoints"
    return [
        trained("whole", LENGTH),
        trained("earlier", ("run.steps=4", "checkpoint.every_steps=2")),
        *(command(f"refused-{name}", fault, "run.name=never-made") for name, (fault, _) in REFUSED.items()),
        trained("kept", ("run.steps=2",)),
        command("never", ["none"], "run.name=kept", "run.steps=3", "--resume", "never"),
        command("never-again", ["started_again"], "run.name=kept", "run.steps=3", "--resume", "never"),
        *(trained(f"huge-{stage}", (*HUGE, zero(stage))) for stage in (0, 1)),
        *(trained(f"spoiled-{stage}", (*SPOILED, zero(stage)), "infinite_gradient", 3) for stage in (0, 1, 2, 3)),
        trained("damaged", ("run.steps=4", "checkpoint.every_steps=2")),
        command("on-damaged", ["damaged", str(runs / "damaged")], "run.name=damaged", *LENGTH),
        trained("chain-1", (*CHAIN, "run.steps=20"), "all_leave_after", 12),
        trained("chain-2", (*CHAIN, "run.steps=20"), "all_leave_after", 7, resume=str(steps / "step-00000005")),
        trained("chain-3", (*CHAIN, "run.steps=15")),
        *(
            trained(f"buckets-{name}-{stage}", (*LENGTH, *layout, zero(stage)), "small_buckets")
            for name, layout in LAYOUTS.items()
            for stage in (1, 2, 3)
        ),
    ]


def ended(command: list[str], timeout_s: float) -> tuple[int, str]:
    """torchrun's exit code and all of stderr. Ranks that hang fail the test, and are ended with it."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        stderr = process.communicate(timeout=timeout_s)[1]
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill: torchrun ends its ranks then
        stderr = process.communicate(timeout=60)[1]
        pytest.fail(f"no end after {timeout_s} s:\n{stderr[-6000:]}")
    return process.returncode, stderr


@pytest.fixture(scope="module")
def night(config: Path, runs: Path) -> Path:
    """The folder of what each rank wrote down about each case."""
    listed = config.with_name("night.json")
    listed.write_text(json.dumps([asdict(case) for case in night_cases(config, runs)]))
    command = torchrun(2, "-m", "tests.ranks.night_cases", str(config), str(listed))
    code, stderr = ended(command, timeout_s=120)
    assert code == 0, stderr[-6000:]
    return config.parent / "night"


@pytest.fixture(scope="module")
def alone(config: Path, runs: Path) -> Path:
    """The run on one rank."""
    run_cases(1, config, [Case("alone", LENGTH)])
    return runs / "alone"


def told(night: Path, name: str) -> list[dict[str, Any]]:
    """What ranks 0 and 1 wrote down about a case."""
    return [json.loads((night / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def outcome(run_folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run_folder / "outcome.json").read_text())
    return values


def start(config: Path, *arguments: str, restarts: int = 0, fault: tuple[Any, ...] = ()) -> tuple[int, list[str], str]:
    """The command on two ranks: torchrun's exit code, the lines `error: ...`, and all of stderr."""
    module = ["tests.ranks.night_cases", "start", json.dumps(fault)] if fault else ["dist_alexnet"]
    command = torchrun(2, f"--max-restarts={restarts}", "-m", *module, "train", str(config), *arguments)
    code, stderr = ended(command, timeout_s=100)
    return code, [line for line in stderr.splitlines() if line.startswith("error:")], stderr


# ---- a mistake that one rank alone sees ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_rank_sees_all_know(night: Path, runs: Path, name: str) -> None:
    """Every rank ends with code 2 at once; rank 0 says it, in one line; no run folder was made."""
    ranks = told(night, f"refused-{name}")
    assert [rank["code"] for rank in ranks] == [2, 2]
    assert max(rank["spent_s"] for rank in ranks) < 10
    (line,) = ranks[0]["said"].splitlines()
    assert line.startswith("error: ")
    assert REFUSED[name][1] in line
    assert ranks[1]["said"] == ""
    assert ranks[0]["touched"] == []
    assert not (runs / "never-made").exists()


def test_a_mistyped_start_leaves_a_finished_run_alone(config: Path, night: Path, runs: Path) -> None:
    """Under torchrun, rank 1 does not see the index: one line, no success, and the run's outcome is what it was."""
    assert outcome(runs / "whole") == {"generation": 1, "cause": "done", "code": 0}
    before = contents(runs / "whole")
    code, lines, _ = start(config, "run.name=whole", "run.steps=10", fault=("index_hidden_from", 1))
    assert code != 0
    assert len(lines) == 1
    assert "/nowhere" in lines[0]
    assert contents(runs / "whole") == before


# ---- kills and restarts ----------------------------------------------------------------------------------------------


def restarted(config: Path, *arguments: str, marker: Path) -> None:
    """Rank 1 is killed at step 6 in the first start; torchrun starts again, with the same arguments."""
    code, lines, stderr = start(
        config, *LENGTH, *arguments, restarts=2, fault=("killed_once", 1, 6, str(marker))
    )  # fmt: skip
    assert marker.exists(), stderr[-4000:]
    assert code == 0, stderr[-6000:]
    assert not any("--resume" in line for line in lines)


def check_whole(run_folder: Path, unbroken: Path) -> None:
    """Every step once, the end bit for bit the unbroken run's."""
    lines = live_lines(run_folder / "metrics.jsonl", starts(run_folder / "attempts.jsonl"))
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert losses(run_folder) == losses(unbroken)
    assert sightings(run_folder, 1) == dict.fromkeys(range(STEPS * 24), 1)
    here, there = tensors(run_folder), tensors(unbroken)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert outcome(run_folder) == {
        "generation": max(starts(run_folder / "attempts.jsonl")), "cause": "done", "code": 0
    }  # fmt: skip


WAITED_FOR = "checkpoint.async=false"  # so that it is known which saves stand when a rank is killed


def test_resume_never_goes_on_after_a_restart(config: Path, night: Path, runs: Path, tmp_path: Path) -> None:
    restarted(config, "run.name=restarted-never", WAITED_FOR, "--resume", "never", marker=tmp_path / "killed")
    started = starts(runs / "restarted-never" / "attempts.jsonl")
    assert started.pop(1) == Start(0, None)
    assert started
    assert set(started.values()) <= {Start(4, generation) for generation in (1, *started)}
    check_whole(runs / "restarted-never", runs / "whole")


def test_resume_path_goes_on_after_a_restart(config: Path, night: Path, runs: Path, tmp_path: Path) -> None:
    """The first start goes back to step 2 of a run that had come to 4; the restart takes up what that start saved."""
    step_2 = runs / "earlier" / "checkpoints" / "step-00000002"
    assert outcome(runs / "earlier")["cause"] == "done"
    restarted(config, "run.name=earlier", WAITED_FOR, "--resume", str(step_2), marker=tmp_path / "killed")
    assert json.loads((tmp_path / "killed").read_text()) is False  # the earlier start's outcome was gone by then
    started = starts(runs / "earlier" / "attempts.jsonl")
    assert started.pop(1) == Start(0, None)
    assert started.pop(2) == Start(2, 1)
    assert started
    assert set(started.values()) <= {Start(4, generation) for generation in (2, *started)}
    check_whole(runs / "earlier", runs / "whole")


@pytest.mark.parametrize("name", ["never", "never-again"])
def test_a_restart_does_not_make_never_mean_auto(night: Path, name: str) -> None:
    """A folder that holds a run which this launch did not begin is refused in the first start and in all after it."""
    ranks = told(night, name)
    assert ranks[0]["touched"] == []
    assert [rank["code"] for rank in ranks] == [2, 2]
    assert "holds a run already" in ranks[0]["said"]


def test_live_steps_follow_what_each_start_stands_on(night: Path, runs: Path) -> None:
    """1 saved 5 and 10 and died at 12; 2 went back to 5 and died at 7; 3 stands on 10: steps 1..15, each once."""
    assert [[rank["said"] for rank in told(night, f"chain-{number}")] for number in (1, 2, 3)] == [
        ["left", "left"],
        ["left", "left"],
        ["None", "None"],
    ]
    started = starts(runs / "chain" / "attempts.jsonl")
    assert started == {1: Start(0, None), 2: Start(5, 1), 3: Start(10, 1)}
    lines = [line for line in live_lines(runs / "chain" / "metrics.jsonl", started) if "train/loss" in line]
    assert [(line["generation"], line["step"]) for line in lines] == [
        *((1, step) for step in range(1, 11)),
        *((3, step) for step in range(11, 16)),
    ]
    assert len([line for line in read_lines(runs / "chain" / "metrics.jsonl") if "train/loss" in line]) == 12 + 2 + 5
    assert sightings(runs / "chain", 1) == dict.fromkeys(range(15 * 24), 1)


# ---- numbers that are none -------------------------------------------------------------------------------------------


def check_diverged(night: Path, runs: Path, name: str) -> list[int]:
    """Every rank has stopped with DivergedError; returns the steps saved, all of whose values are finite."""
    assert [rank["error"] for rank in told(night, name)] == ["DivergedError", "DivergedError"]
    assert outcome(runs / name)["cause"].startswith("DivergedError: ")
    assert outcome(runs / name)["code"] == 1
    saved = sorted(path.parent for path in (runs / name).glob("checkpoints/*/*/COMMIT"))
    for folder in saved:
        assert all(values.isfinite().all() for values in tensors(folder).values())
    return [int(folder.parent.name[5:]) for folder in saved]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_rate_that_is_too_high_stops_the_run(night: Path, runs: Path, stage: int) -> None:
    saved = check_diverged(night, runs, f"huge-{stage}")
    assert saved == list(range(1, len(saved) + 1))
    assert 1 <= len(saved) < STEPS


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_stops_the_run(night: Path, runs: Path, stage: int) -> None:
    """On one rank, at step 3, the losses being fine: ZeRO leaves such a step out and goes on, its stage 0 does not."""
    assert check_diverged(night, runs, f"spoiled-{stage}") == [1, 2]
    assert "step 3" in told(night, f"spoiled-{stage}")[0]["said"]


# ---- damage and rot --------------------------------------------------------------------------------------------------


def test_damaged_checkpoints_are_no_reason_to_begin_again(
    config: Path, night: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One byte of each is another: the start is refused, under torchrun and without, and nothing is removed."""
    ranks = told(night, "on-damaged")
    assert [rank["code"] for rank in ranks] == [0, 0]  # torchrun would start again
    assert ranks[0]["touched"] == ["damaged/outcome.json"]
    assert outcome(runs / "damaged")["code"] == 2
    before = contents(runs / "damaged")
    capsys.readouterr()
    assert run(["train", str(config), "run.name=damaged", *LENGTH]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no checkpoint of ")
    assert "step-00000002" in line
    assert "step-00000004" in line
    assert contents(runs / "damaged") == before


def test_a_torn_picture_that_the_index_knows_is_a_line_in_the_ledger(config: Path, night: Path, runs: Path) -> None:
    positions = {at for at, key in keys_by_position(runs / "whole").items() if key == f"train-{TORN:04d}"}
    assert positions
    assert {(line["position"], line["key"]) for line in read_lines(runs / "whole" / "ledger.jsonl")} == {
        (at, f"train-{TORN:04d}") for at in positions
    }


def test_rot_on_one_rank_is_what_the_run_says_it_died_of(config: Path, night: Path, runs: Path, tmp_path: Path) -> None:
    """A picture that rank 1 reads in step 3 is zeros: a fault of its shard, which rank 0 writes down as the cause."""
    shutil.copytree(config.parent / "shards", tmp_path / "shards")
    index = read_index(str(tmp_path / "shards" / "train.index.json"))
    samples = ShardReader(index).read(range(len(index)))
    torn = next(sample for sample in samples if sample.key == f"train-{TORN:04d}")
    (third,) = [line for line in read_lines(runs / "whole" / "keys" / "rank-00001.jsonl") if line["step"] == 3]
    victim = next(sample for sample in samples if sample.key in third["keys"] and sample.url != torn.url)
    row = index.samples[victim.sample_id]
    with Path(victim.url).open("r+b") as file:
        file.seek(int(row["offset"]))
        file.write(bytes(int(row["length"])))
    arguments = (*LENGTH, "run.name=rotten", f"data.train={tmp_path / 'shards' / 'train.index.json'}")
    code, lines, stderr = start(config, *arguments)
    assert code != 0
    (line,) = [line for line in lines if line.startswith("error: rank 1: ")]
    assert f"{victim.url} is not what the index describes: sample {victim.sample_id} " in line
    assert "CRC-32" in line
    assert "exitcode  : 1 " in stderr
    assert victim.key not in {line["key"] for line in read_lines(runs / "rotten" / "ledger.jsonl")}
    (end,) = [line for line in read_lines(runs / "rotten" / "attempts.jsonl") if line["event"] == "end"]
    for said in (end, outcome(runs / "rotten")):
        assert said["cause"].startswith(f"StorageFault: {victim.url} is not what the index describes")
        assert said["code"] == 1
    assert [line["step"] for line in read_lines(runs / "rotten" / "metrics.jsonl")] == [1, 2]


# ---- DeepSpeed's other path ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_buckets_change_nothing(night: Path, runs: Path, alone: Path, layout: str, stage: int) -> None:
    """Many buckets a tensor, and no parameter that stays gathered, as for the net at full size."""
    name = f"buckets-{layout}-{stage}"
    assert [rank["error"] for rank in told(night, name)] == [None, None]
    assert keys_by_position(runs / name) == keys_by_position(alone)
    assert losses(runs / name) == pytest.approx(losses(alone), rel=1e-4)
    assert difference(runs / name, alone) < 1e-4
