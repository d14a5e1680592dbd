"""launch/torchrun.sh and `python -m launch local`, with real ranks: exit codes, signals, a rank that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_alexnet.config import config_from, to_yaml
from dist_alexnet.track.jsonl import read_lines
from tests.ranks.pictures import CLASSES, write_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    write_shards(folder / "shards")
    values = {
        "run": {"dir": str(folder / "runs"), "steps": 100000},
        "data": {
            "train": str(folder / "shards" / "train.index.json"),
            "batch_size": 24,
            "workers": 0,
            "resize": 72,
            "image_size": 64,
            "bad_samples": {"max_fraction": 0.2},
        },
        "network": {"num_classes": CLASSES, "width": 0.125},
        "parallel": {"columns": 2},
        "checkpoint": {"every_epochs": None, "every_steps": 10},
        "log": {"every_steps": 1, "wandb": {"mode": "disabled"}},
    }
    path = folder / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


def start(config: Path, *words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch", "local", str(config), "--ranks=2", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=config.parent, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(process: "subprocess.Popen[str]", run: Path, generation: int, step: int) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        lines = read_lines(run / "metrics.jsonl")
        if any(line["generation"] == generation and line["step"] >= step for line in lines):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"start {generation} did not come to step {step}")


def rank_1_of(run: Path) -> int:
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
            variables = (process / "environ").read_bytes().split(b"\0") if words else []
            if f"run.name={run.name}".encode() in words and b"RANK=1" in variables:
                return int(process.name)
        except OSError:  # gone
            continue
    raise AssertionError("no rank 1")


def test_stopped_with_75_and_a_killed_rank_is_started_again(config: Path) -> None:
    run = config.parent / "runs" / "stopped"
    process = start(config, "run.name=stopped")
    wait_for(process, run, 1, 5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, f"{out}\n{err}"
    assert "asked to stop (TERM)" in err
    assert "Traceback" not in err
    outcome = {"generation": 1, "cause": "stopped: the file stop in the run folder", "code": 75}
    assert json.loads((run / "outcome.json").read_text()) == outcome

    stopped_at = read_lines(run / "attempts.jsonl")[-1]["step"]
    process = start(config, "run.name=stopped", "--max-restarts=1", f"run.steps={stopped_at + 60}")
    wait_for(process, run, 2, stopped_at + 15)
    os.kill(rank_1_of(run), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, f"{out}\n{err}"
    starts = [line for line in read_lines(run / "attempts.jsonl") if line["event"] == "start"]
    assert [line["generation"] for line in starts] == [1, 2, 3]
    assert starts[2]["step"] > starts[1]["step"] == stopped_at
    assert json.loads((run / "outcome.json").read_text())["cause"] == "done"


def test_the_users_mistake_is_2_before_and_after_ranks_have_met(config: Path) -> None:
    """Found by the script itself, or by the ranks; an outcome of another start is not taken for this one's."""
    for words, said in (
        (["run.nam=x"], "unknown key run.nam"),
        (["run.name=mistaken", "data.train=nowhere.index.json"], "nowhere.index.json"),
    ):
        (config.parent / "runs" / "mistaken").mkdir(parents=True, exist_ok=True)
        (config.parent / "runs" / "mistaken" / "outcome.json").write_text('{"generation": 9, "cause": "x", "code": 75}')
        process = start(config, *words)
        out, err = process.communicate(timeout=90)
        assert process.returncode == 2, f"{out}\n{err}"
        assert [line for line in err.splitlines() if line.startswith("error: ") and said in line], err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ({}, [], "error: no config given"),
        ({"NNODES": "2"}, ["x.yaml"], "error: NNODES is 2 and RDZV_ENDPOINT is not set"),
        ({}, ["x.yaml"], "error: config x.yaml is not a file"),
    ],
)
def test_what_the_script_refuses(settings: dict[str, str], words: list[str], said: str) -> None:
    done = subprocess.run(
        [str(ROOT / "launch" / "torchrun.sh"), *words],
        env={**os.environ, **settings, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
