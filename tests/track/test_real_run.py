"""A real training run that is killed three times, as W&B and `track replay` show it."""

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
from tests.track.one_start import history, offline_files, records


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    values = {
        "run": {"name": "run", "dir": str(tmp_path), "steps": 60},
        "data": {
            "train": str(tmp_path / "shards" / "train.index.json"),
            "val": str(tmp_path / "shards" / "val.index.json"),
            "batch_size": 24,
            "workers": 0,
            "resize": 72,
            "image_size": 64,
            "bad_samples": {"max_fraction": 0.2},
        },
        "network": {"num_classes": CLASSES, "width": 0.125},
        "checkpoint": {"every_epochs": None, "every_steps": 5},
        "evaluate": {"every_epochs": None, "every_steps": 10, "batch_size": 10},
        "log": {"every_steps": 1, "wandb": {"mode": "offline", "checkpoints": True}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


@pytest.mark.long
def test_a_run_killed_three_times_has_each_step_once(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for generation, step in ((1, 8), (2, 17), (3, 33)):
        process = _command("train", str(config))
        _wait_for(process, run, generation, step)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _command("train", str(config)).wait(timeout=120) == 0
    rows = history(offline_files(run)[-1])
    assert [row["step"] for row in rows] == [row["_step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if "val/top1" in row] == list(range(10, 61, 10))
    names = [line["artifact"]["name"] for line in records(offline_files(run)[-1]) if line["type"] == "artifact"]
    run_id = (run / "wandb" / "run-id.txt").read_text().strip()
    assert set(names) == {f"checkpoint-{run_id}"}
    (commit,) = (run / "checkpoints" / "step-00000060").glob("*/COMMIT")
    assert json.loads(commit.read_text())["state"]["wandb_id"] == run_id
    assert _command("track", "replay", str(run), "--mode=offline", "--id=again").wait(timeout=60) == 0
    (again,) = (run / "wandb").glob("offline-run-*-again/*.wandb")
    replayed = history(again)
    assert [(row["step"], row["train/loss"]) for row in replayed] == [(row["step"], row["train/loss"]) for row in rows]


def _command(*words: str) -> "subprocess.Popen[bytes]":
    variables = {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dist_alexnet", *words],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_for(process: "subprocess.Popen[bytes]", run: Path, generation: int, step: int) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s and process.poll() is None:
        lines = read_lines(run / "metrics.jsonl")
        if any(line["generation"] == generation and line["step"] >= step for line in lines):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"start {generation} did not come to step {step}")
