"""Runs over a hostfile: real ssh to a real sshd, two hosts of one rank each, and what a user may get wrong.

About 40 s of two free cores, most of it Python starting; the long ones as much again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_alexnet.config import config_from, to_yaml
from launch.__main__ import run
from launch.hostfile import Host, read_hostfile, read_settings
from shards.errors import InputError
from tests.doctor.conftest import write_set
from tests.launch.ssh_hosts import two_hosts
from tests.ranks.harness import ROOT, environment

START_S = 120.0  # for a start to take its first steps, on busy cores


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no host"),
        ("# n1 slots=1\n", "names no host"),
        ("n1\n", "line 1 is 'n1', expected"),
        ("n1 slots=1\nn2 slots=0\n", "line 2 is 'n2 slots=0'"),
        ("n1 slots=two\n", "line 1"),
        ("-oProxyCommand=x slots=1\n", "line 1"),
        ("n1;reboot slots=1\n", "line 1"),
        ("n1 slots=1\nn1 slots=2\n", "names n1 2 times"),
    ],
)
def test_a_malformed_hostfile_is_refused_in_a_sentence(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text(text)
    assert run(["hosts", str(tmp_path / "hosts"), str(ROOT / "configs" / "quickstart.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_hostfile_is_read_as_the_deepspeed_launcher_reads_it(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# mine\nworker-1 slots=4\n\n  me@worker-2.lan   slots=8 # new\n")
    assert read_hostfile(tmp_path / "hosts") == [Host("worker-1", 4), Host("me@worker-2.lan", 8)]
    with pytest.raises(InputError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_settings_are_those_of_the_first_file_and_a_wrong_line_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / ".deepspeed_env").write_text("A=1\n")
    assert read_settings([tmp_path / "here", tmp_path]) == ["A=1"]
    (tmp_path / "here" / ".deepspeed_env").write_text("# of mine\nNCCL_DEBUG=INFO\nB=x=y\n")
    assert read_settings([tmp_path / "here", tmp_path]) == ["NCCL_DEBUG=INFO", "B=x=y"]
    (tmp_path / "here" / ".deepspeed_env").write_text("WANDB_API_KEY : secret\n")
    with pytest.raises(InputError, match="line 1 is no setting") as refused:
        read_settings([tmp_path / "here"])
    assert "secret" not in str(refused.value)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with two_hosts(tmp_path_factory.mktemp("sshd")) as ssh:
        yield ssh


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config of many small steps, a hostfile of two hosts, and settings for them."""
    folder = tmp_path_factory.mktemp("hosts")
    sound = write_set(folder / "sound")
    values = {
        "run": {"name": "hosted", "dir": "runs", "steps": 100_000},
        "data": {"train": f"{sound}/train.index.json", "batch_size": 8, "workers": 0, "image_size": 64, "resize": 64},
        "network": {"num_classes": 5, "width": 0.125},
        "parallel": {"columns": 2},
        "checkpoint": {"every_epochs": None},
        "log": {"every_steps": 1, "wandb": {"mode": "disabled"}},
    }
    (folder / "config.yaml").write_text(to_yaml(config_from(values, "the test")))
    (folder / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    (folder / ".deepspeed_env").write_text("OF_THE_TEST=two words\n")
    return folder


def refused(place: Path, ssh: str, hosts: str) -> str:
    (place / "others").write_text(hosts)
    done = subprocess.run(
        [str(ROOT / "launch" / "hosts.sh"), "others", "config.yaml", "--ssh", ssh],
        cwd=place,
        env=environment() | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert not (place / "runs").exists()
    (line,) = done.stderr.splitlines()
    return line


def test_hosts_that_cannot_train_are_named_and_nothing_is_started(place: Path, ssh: str) -> None:
    away = refused(place, ssh, "n1 slots=1\naway slots=1\n")
    assert away.startswith("error: host away cannot be reached by ssh")
    assert away.endswith("nothing was started")
    assert "world size is 3, expected a multiple of parallel.columns (2)" in refused(
        place, ssh, "n1 slots=1\nn2 slots=2\n"
    )
    assert "no-such-ssh cannot be run" in refused(place, "no-such-ssh", "n1 slots=2\n")
    assert "expected a command as a shell takes it (No closing quotation)" in refused(place, "ssh '-F", "n1 slots=2\n")


def processes(of: str = "OF_THE_TEST=two words") -> list[int]:
    """Processes whose environment has the setting of .deepspeed_env."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if of.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(what: Callable[[], object], limit_s: float, why: str) -> None:
    until_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < until_s, why
        time.sleep(0.1)


class Start:
    """launch/hosts.sh, running."""

    def __init__(self, place: Path, ssh: str, *overrides: str) -> None:
        run = next((one.removeprefix("run.name=") for one in overrides if one.startswith("run.name=")), "hosted")
        self.metrics = place / "runs" / run / "metrics.jsonl"
        self.log = (place / "log").open("a+")
        self.begin = self.log.tell()
        self.process = subprocess.Popen(
            [str(ROOT / "launch" / "hosts.sh"), "hosts", "config.yaml", *overrides, "--ssh", ssh],
            cwd=place,
            env=environment() | {"PYTHON": sys.executable},
            stdout=self.log,
            stderr=self.log,
        )

    def said(self) -> str:
        self.log.seek(self.begin)
        return self.log.read()

    def train(self) -> None:
        """Wait for a few steps of this start."""
        before = self.lines()
        wait_until(lambda: self.lines() > before + 3 or self.process.poll() is not None, START_S, self.said())
        assert self.process.poll() is None, self.said()

    def lines(self) -> int:
        return len(self.metrics.read_text().splitlines()) if self.metrics.exists() else 0

    def end(self, limit_s: float = 90) -> int:
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.said()) from None


def saved_step(place: Path, run: str = "hosted") -> int:
    """Of the newest checkpoint."""
    return max(int(path.parent.parent.name[5:]) for path in (place / "runs" / run).rglob("COMMIT"))


def attempts(place: Path, run: str = "hosted") -> list[dict[str, object]]:
    return [json.loads(line) for line in (place / "runs" / run / "attempts.jsonl").read_text().splitlines()]


def test_a_run_over_two_hosts_stops_on_request_and_goes_on(place: Path, ssh: str) -> None:
    doctor = Start(place, ssh, "--doctor")
    assert doctor.end(START_S) == 0, doctor.said()
    assert "collectives: 2 ranks on gloo" in doctor.said()
    assert not (place / "runs").exists()

    asked = Start(place, ssh)
    asked.train()
    assert len(processes()) >= 4  # two of torchrun.sh, two ranks at least: the settings have reached both hosts
    asked.process.send_signal(signal.SIGTERM)
    assert asked.end() == 75, asked.said()
    assert processes() == []
    step = saved_step(place)
    assert step > 0
    resumed = Start(place, ssh, f"run.steps={step + 3}")
    assert resumed.end(START_S) == 0, resumed.said()
    assert processes() == []
    assert [line["step"] for line in attempts(place) if line["event"] == "start"] == [0, step]
    assert [line["code"] for line in attempts(place) if line["event"] == "end"] == [75, 0]


@pytest.mark.long
def test_no_rank_outlives_its_shell_nor_a_rank_of_another_host(place: Path, ssh: str) -> None:
    killed = Start(place, ssh, "run.name=killed")
    killed.train()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.end()
    wait_until(lambda: not processes(), 60, "ranks live on")
    step = saved_step(place, "killed")
    assert step > 0

    broken = Start(place, ssh, "run.name=killed")
    broken.train()
    os.kill(rank_1(), signal.SIGKILL)
    assert broken.end() == 1, broken.said()
    assert "ended: exit code 1" in broken.said()
    assert processes() == []
    assert [line["step"] for line in attempts(place, "killed") if line["event"] == "start"] == [0, step]


def rank_1() -> int:
    """The process of that rank, which is on n2."""
    for pid in processes("RANK=1"):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if pid in processes() and b"dist_alexnet\0train" in command:
            return pid
    raise AssertionError("there is no rank 1")
