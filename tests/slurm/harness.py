"""The cluster of cluster.sh, as an ordinary user and its operator see it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.track.jsonl import read_lines

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
USER = "nobody"
STEPS = 120


@dataclass(frozen=True)
class Job:
    """A job that `python -m launch slurm` has submitted, and the run that it trains."""

    number: str
    run: Path
    logs: tuple[Path, ...]

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in self.logs if path.exists())

    def starts(self) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.run / "attempts.jsonl") if line["event"] == "start"]

    def ends(self) -> dict[int, dict[str, Any]]:
        """generation -> its line of the end."""
        return {line["generation"]: line for line in read_lines(self.run / "attempts.jsonl") if line["event"] == "end"}

    def outcome(self) -> dict[str, Any]:
        return json.loads((self.run / "outcome.json").read_text())  # type: ignore[no-any-return]

    def step_of(self, generation: int) -> int:
        """The last step that start has logged."""
        lines = read_lines(self.run / "metrics.jsonl")
        return max((line["step"] for line in lines if line["generation"] == generation), default=-1)

    def reaches(self, generation: int, step: int, timeout_s: float = 180) -> None:
        """Wait until that start has logged that step."""
        until(lambda: self.step_of(generation) >= step, timeout_s, f"start {generation} at step {step}", self)

    def ranks(self) -> dict[int, int]:
        """rank -> its pid as this machine sees it, of the job's ranks that run."""
        found = {}
        for process in Path("/proc").iterdir():
            try:
                variables = (process / "environ").read_bytes().split(b"\0") if process.name.isdigit() else []
                words = (process / "cmdline").read_bytes().split(b"\0") if variables else []
            except OSError:  # gone
                continue
            rank = [int(entry[5:]) for entry in variables if entry.startswith(b"RANK=")]
            if rank and f"SLURM_JOB_ID={self.number}".encode() in variables and b"dist_alexnet" in words:
                found[rank[0]] = int(process.name)
        return found


class Cluster:
    """Three nodes, n1 to n3."""

    def __init__(self, state: Path, folder: Path) -> None:
        """state: of cluster.sh; folder: where the user works, on all nodes."""
        self.folder = folder
        self._environment = {
            **os.environ,
            "CLUSTER_DIR": str(state),
            "CLUSTER_SHOW": ":".join(dict.fromkeys([sys.base_prefix, sys.prefix, str(ROOT)])),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "WANDB_MODE": "offline",
        }

    def operate(self, *words: str, timeout_s: float = 60) -> str:
        """A command of cluster.sh; returns what it says on stdout."""
        command = [str(SCRIPT), *words]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def user(self, *words: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        """A command of the ordinary user on the login node."""
        command = [str(SCRIPT), "exec", "runuser", "-u", USER, "--", *words]
        return subprocess.run(
            command, env=self._environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout_s
        )

    def launch(self, config: Path, name: str, *options: str, overrides: tuple[str, ...] = ()) -> Job:
        """Submit a run as the ordinary user."""
        words = ["slurm", str(config), *options, "--", f"run.name={name}", *overrides]
        done = self.user(sys.executable, "-m", "launch", *words)
        assert done.returncode == 0, done.stderr
        said = [line.split(None, 1) for line in done.stdout.splitlines()]
        told = dict(line for line in said if len(line) == 2)
        logs = tuple(Path(line[1]) for line in said if line[0] == "log")
        return Job(told["submitted"].removeprefix("job "), Path(told["run"].removeprefix("folder").strip()), logs)

    def wait(self, job: Job, timeout_s: float) -> str:
        """The state in which a job has ended for good; of an array, the states of its tasks."""
        command = [str(SCRIPT), "wait", job.number, f"{timeout_s:.0f}"]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=timeout_s + 60, check=False
        )
        assert done.returncode != 2, f"job {job.number} has not ended after {timeout_s} s: {done.stdout}\n{job.log}"
        return done.stdout.strip()

    def shows(self, job: str) -> str:
        """What scontrol says of a job."""
        return self.user("scontrol", "show", "job", job).stdout


def until(holds: Callable[[], bool], timeout_s: float, what: str, job: Job | None = None) -> None:
    """Wait for something; fails with the job's log where it does not come."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(f"not seen in {timeout_s} s: {what}\n{job.log[-6000:] if job else ''}")
