"""What a run records of itself, and that it never gets in the run's way."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dist_alexnet import record
from dist_alexnet.config import config_from
from dist_alexnet.environment import recorded_variables
from dist_alexnet.record import git_state, record_start, without_secrets

LAYOUT = {"data": 1, "replicas": 1, "columns": 2, "zero_stage": 1}


def recorded(folder: Path) -> dict[str, object]:
    """Of a start whose run folder is there."""
    config = config_from({"run": {"dir": str(folder), "name": "r", "seed": 7}, "parallel": {"columns": 2}}, "the test")
    (config.run_folder / "generations").mkdir(parents=True, exist_ok=True)
    record_start(config, 3, LAYOUT, ["one", "two"], 120)
    path = config.run_folder / "generations" / "g0003.json"
    until_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until_s
        time.sleep(0.02)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_start_records_what_its_numbers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    found = recorded(tmp_path)
    assert (found["generation"], found["step"], found["seed"]) == (3, 120, 7)
    assert (found["layout"], found["hosts"]) == (LAYOUT, ["one", "two"])
    versions = found["versions"]
    assert isinstance(versions, dict)
    assert all(versions[name] for name in ("python", "torch", "deepspeed", "numpy", "pillow", "libjpeg"))
    assert found["deepspeed"]["zero_optimization"]["stage"] == 0  # type: ignore[index]  # the config's
    assert found["variables"]["NCCL_ALGO"] == "Ring"  # type: ignore[index]
    assert "s3cret" not in json.dumps(found)


def test_git_says_commit_and_change(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "one")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert (clean["changed"], clean["diff_sha256"]) == (False, None)
    (tmp_path / "a").write_text("2")
    changed = git_state(tmp_path)
    assert changed is not None
    assert (changed["commit"], changed["changed"]) == (clean["commit"], True)
    assert changed["diff_sha256"]


@pytest.mark.parametrize("body", ["sleep 60", "exit 3"], ids=["hangs", "fails"])
def test_a_git_that_does_not_answer_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nexec {body}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(record, "GIT_S", 0.2)
    began_s = time.monotonic()
    assert git_state(tmp_path) is None
    assert time.monotonic() - began_s < 30


def test_no_record_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git, with libraries that fail, and without the folder it would lie in."""
    monkeypatch.setenv("PATH", "/nowhere")

    def fails() -> list[str]:
        raise RuntimeError("no device")

    monkeypatch.setattr(record, "_devices", fails)
    found = recorded(tmp_path)
    assert (found["git"], found["devices"]) == ({"folder": None, "package": None}, None)
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    gone = config_from({"run": {"dir": str(tmp_path / "gone")}}, "the test")
    record_start(gone, 1, LAYOUT, [], 0)
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(10)
    assert failed == []


def test_secrets_stay_out() -> None:
    given = ["train", "a.yaml", "data.train=s3://me:pw@host/a?sig=xyz", "some.api_key=abc", "log.sample_keys=true"]
    assert without_secrets(given) == ["train", "a.yaml", "data.train=s3://host/a", "some.api_key=...", given[-1]]
    kept = recorded_variables({"TORCH_HOME": "/x", "NCCL_TOKEN": "t", "AWS_SECRET": "s", "OMP_NUM_THREADS": "1"})
    assert kept == {"OMP_NUM_THREADS": "1", "TORCH_HOME": "/x"}
