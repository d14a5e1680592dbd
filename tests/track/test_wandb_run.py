"""Real W&B, without an account and without a network."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.track.wandb_run import run_identity

# One start of a run, in a process of its own as in life.
START = """
import math, sys
from pathlib import Path
from types import SimpleNamespace
from dist_alexnet.track.wandb_run import start_wandb

folder, mode, generation = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
settings = SimpleNamespace(mode=mode, project="trial", entity=None)
run = start_wandb(settings, run_folder=folder, run_name="digits", config={"data": {"batch_size": 64}},
                  generation=generation, resumed_step=2 * generation)
for step in (2 * generation + 1, 2 * generation + 2):
    run.log(step, step * 64, {"train/loss": 1 / step, "val/top1": math.nan})
run.finish(0)
print("wandb imported" if "wandb" in sys.modules else "wandb not imported")
"""


def start(folder: Path, mode: str, generation: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") and key != "NETRC"}
    return subprocess.run(
        [sys.executable, "-c", START, str(folder), mode, str(generation)],
        env={**kept, "HOME": str(home), **environ},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        stdin=subprocess.DEVNULL,
    )


def records(file: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_starts_without_a_key_are_one_offline_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for generation in (0, 1):
        done = start(folder, "auto", generation)
        assert (done.stdout, done.stderr) == ("wandb imported\n", "")
        time.sleep(1)  # W&B names the folder of a start by the second
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    run_id = (folder / "wandb" / "run-id.txt").read_text().strip()
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    assert [path.name for path in folder.iterdir()] == ["wandb"]
    for generation, file in enumerate(files):
        lines = records(file)
        history = [line["history"]["item"] for line in lines if line["type"] == "history"]
        steps = [2 * generation + 1, 2 * generation + 2]
        assert [(item["step"], item["samples"]) for item in history] == [(step, step * 64) for step in steps]
        assert [item["train/loss"] for item in history] == [pytest.approx(1 / step) for step in steps]
        assert all(math.isnan(float(item["val/top1"])) for item in history)
        config: dict[str, Any] = {}
        for line in lines:
            config |= line.get(line["type"], {}).get("config", {}).get("update", {}) if line["type"] == "run" else {}
            config |= line["config"]["update"] if line["type"] == "config" else {}
        assert config["data"] == {"batch_size": 64}
        assert (config["generation"], config["resumed_step"]) == (generation, 2 * generation)
        axis = [line["metric"] for line in lines if line["type"] == "metric"]
        assert any(metric.get("glob_name") == "*" and metric.get("step_metric") == "step" for metric in axis)


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    done = start(tmp_path / "run", "disabled")
    assert (done.stdout, done.stderr) == ("wandb not imported\n", "")
    assert not (tmp_path / "run").exists()


def test_online_without_a_key_is_offline_and_asks_nothing(tmp_path: Path) -> None:
    done = start(tmp_path / "run", "online")
    assert done.stderr.splitlines() == ["W&B: no API key (WANDB_API_KEY or ~/.netrc), so this run is logged offline"]
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_service_that_does_not_answer_costs_one_line_and_bounded_time(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    done = start(tmp_path / "run", "auto", WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:1")
    assert time.monotonic() - begin_s < 60
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B: online start failed (")
    assert line.endswith("this run is logged offline")
    assert "aaaa" not in line
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert [line["history"]["item"]["step"] for line in records(file) if line["type"] == "history"] == [1, 2]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    done = start(tmp_path / "run", "offline")
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B: offline start failed (")


def test_the_identity_survives_a_kill_between_creating_and_writing(tmp_path: Path) -> None:
    first = run_identity(tmp_path)
    assert run_identity(tmp_path) == first
    (tmp_path / "wandb" / "run-id.txt").write_text("")
    second = run_identity(tmp_path)
    assert second
    assert second != first
    assert run_identity(tmp_path) == second
