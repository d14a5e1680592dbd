"""Runs on a real Slurm cluster: each ends with the weights of one that nothing happened to."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_alexnet.attempts import attempts
from tests.ranks.harness import keys_by_position, losses, sightings, tensors
from tests.slurm.harness import ROOT, STEPS, Cluster, Job, until

TWO = ("--nodes=2", "--ranks-per-node=1", "--time=10", "--no-check-data")


@pytest.fixture(scope="module")
def alone(cluster: Cluster, config: Path, limited: Job) -> Job:
    """A run under torchrun on two nodes, checked before it was submitted; while it trains, the controller is away for
    20 s."""
    options = [option for option in TWO if option != "--no-check-data"]
    job = cluster.launch(config, "unbroken", *options)
    job.reaches(1, 3)
    away_s = time.monotonic()
    cluster.operate("ctl", "stop")
    until(lambda: (job.run / "outcome.json").exists(), 120, "the end of a run without a controller", job)
    time.sleep(max(0.0, away_s + 20 - time.monotonic()))
    cluster.operate("ctl", "start")
    return job


@pytest.fixture(scope="module")
def unbroken(alone: Job) -> Path:
    return alone.run


def as_if_nothing_had_happened(run: Path, unbroken: Path) -> None:
    here, there = tensors(run), tensors(unbroken)
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert keys_by_position(run) == keys_by_position(unbroken)
    assert sightings(run, 1) == dict.fromkeys(range(STEPS * 24), 1)
    assert losses(run) == losses(unbroken)
    assert sum(one.gained for one in attempts(run)) == STEPS


def test_asked_to_stop_and_preempted(cluster: Cluster, config: Path, unbroken: Path) -> None:
    """One task a rank. Each time: saved, put back into the queue, gone on with, no sample lost or repeated."""
    job = cluster.launch(config, "asked", *TWO, "--style=srun", overrides=("log.wandb.mode=offline",))
    job.reaches(1, 10)
    asked_at = job.step_of(1)
    cluster.user("scancel", "--batch", "--signal=USR1", job.number)  # as Slurm does before the time is over
    job.reaches(2, asked_at + 10)
    wanted = f"--nodelist={job.starts()[1]['hosts'][1]}"
    urgent = cluster.user("sbatch", "--parsable", "--partition=urgent", wanted, "--exclusive", "--wrap=true")
    assert urgent.returncode == 0, urgent.stderr
    assert cluster.wait(job, 240) == "COMPLETED", job.log
    as_if_nothing_had_happened(job.run, unbroken)
    first, second, third = attempts(job.run)
    assert [one.cause for one in (first, second, third)] == ["stopped: SIGUSR1", "stopped: SIGUSR1", "done"]
    assert (first.lost, second.lost, third.lost) == (0, 0, 0)
    assert "JobState=COMPLETED" in cluster.shows(urgent.stdout.strip())
    assert "Restarts=2" in cluster.shows(job.number)
    wandb_runs = {path.name.split("-")[-1] for path in (job.run / "wandb").glob("offline-run-*")}
    assert len(wandb_runs) == 1


def test_a_controller_that_was_away_did_no_harm(cluster: Cluster, alone: Job) -> None:
    assert cluster.wait(alone, 120) == "COMPLETED"
    assert alone.outcome() == {"generation": 1, "cause": "done", "code": 0}
    assert len(alone.starts()) == 1
    assert len(alone.starts()[0]["hosts"]) == 2


def test_a_killed_rank_a_crashed_node_and_a_cut_one(cluster: Cluster, config: Path, unbroken: Path) -> None:
    """torchrun starts a killed rank again where it is; a node that is lost costs the steps since the last save."""
    job = cluster.launch(config, "bad-night", *TWO, "--max-restarts=1")
    job.reaches(1, 15)
    os.kill(job.ranks()[1], signal.SIGKILL)
    job.reaches(2, 35)
    assert "Restarts=0" in cluster.shows(job.number)

    crashed = job.starts()[1]["hosts"][1]
    cluster.operate("crash", crashed)
    job.reaches(3, 55, timeout_s=240)
    assert job.starts()[2]["hosts"] == sorted({"n1", "n2", "n3"} - {crashed})
    cluster.operate("boot", crashed)

    cut = job.starts()[2]["hosts"][1]
    cluster.operate("cut", cut)
    cut_s = time.time()
    job.reaches(4, 75, timeout_s=240)
    assert job.starts()[3]["hosts"] == sorted({"n1", "n2", "n3"} - {cut})
    assert cluster.wait(job, 240) == "COMPLETED", job.log
    cluster.operate("heal", cut)

    commits = list((job.run / "checkpoints").glob("step-*/g*/COMMIT"))
    late = {path.parent.name for path in commits if path.stat().st_mtime > cut_s + 1}
    assert late == {"g0004"}  # ranks of the cut node live on, and commit nothing
    as_if_nothing_had_happened(job.run, unbroken)
    assert [one.cause == "done" for one in attempts(job.run)] == [False, False, False, True]


def test_an_array_of_three_finishes_what_takes_three_limits(cluster: Cluster, config: Path, unbroken: Path) -> None:
    job = cluster.launch(config, "array", *TWO, "--array=3", "--style=srun")
    for task, step in ((1, 30), (2, 70)):
        job.reaches(task, step)
        cluster.user("scancel", "--batch", "--signal=USR1", f"{job.number}_{task}")
    assert cluster.wait(job, 240) == "COMPLETED FAILED", job.log
    as_if_nothing_had_happened(job.run, unbroken)
    assert [end["code"] for end in job.ends().values()] == [75, 75, 0]
    assert [len(log.read_text()) > 0 for log in job.logs] == [True] * 3


def test_what_a_person_stops_does_not_come_back(cluster: Cluster, config: Path) -> None:
    one = ("--nodes=1", "--time=10", "--style=srun", "--no-check-data")
    endless = ("run.steps=100000", "checkpoint.every_steps=100000", f"run.dir={cluster.folder}/it's mine")
    cancelled = cluster.launch(config, "cancelled", *one, "--ranks-per-node=1", overrides=endless)
    stopped = cluster.launch(config, "stopped", *one, "--ranks-per-node=2", overrides=endless)
    for job in (cancelled, stopped):
        job.reaches(1, 5)
    cluster.user("scancel", cancelled.number)
    (stopped.run / "stop").touch()
    assert cluster.wait(cancelled, 120) == "CANCELLED"
    assert cluster.wait(stopped, 120) == "FAILED"
    assert "not put back into the queue: somebody asked the run to stop" in stopped.log
    for job, cause in ((cancelled, "stopped: SIGTERM"), (stopped, "stopped: the file stop in the run folder")):
        assert "putting job" not in job.log
        assert job.outcome() == {"generation": 1, "cause": cause, "code": 75}  # saved, both


def test_what_fails_again_and_again_ends_and_a_chain_goes_on(cluster: Cluster, config: Path) -> None:
    """The first job of a chain is put back twice, and not a third time; the second begins after it."""
    one = ("--nodes=1", "--ranks-per-node=1", "--time=10", "--style=srun", "--no-check-data", "--option=--hold")
    chain = cluster.launch(config, "hopeless", *one, "--chain=2", "--max-requeues=9")
    first, second = chain.number.split()
    assert f"afterany:{first}" in cluster.shows(second)
    (chain.run / "launches" / "0001" / "code" / "dist_alexnet" / "train.py").write_text("raise OSError('broken')")
    cluster.user("scontrol", "release", first, second)
    for number in (first, second):
        assert cluster.wait(replace(chain, number=number), 120) == "FAILED", chain.log
    starts = [log.read_text().count(", start ") for log in chain.logs]
    assert starts == [3, 1]
    assert chain.log.count("3 starts in a row failed without a new checkpoint") == 2


def test_the_limit_of_time(cluster: Cluster, limited: Job) -> None:
    """Slurm warns, the run saves and goes back into the queue: as often as it may, and no more."""
    assert cluster.wait(limited, 240) == "FAILED", limited.log
    starts, ends = limited.starts(), limited.ends()
    assert [end["code"] for end in ends.values()] == [75, 75]
    for end in ends.values():
        assert end["cause"] in ("stopped: SIGUSR1", "stopped: the end of the job's time")
    assert [start["step"] for start in starts] == [0, ends[1]["step"]]
    assert limited.log.count("putting job") == 1
    assert "this was start 1 of at most 1 requeues" in limited.log


def test_what_slurm_refuses_leaves_nothing(cluster: Cluster, config: Path) -> None:
    words = ("slurm", str(config), *TWO, "--partition=nowhere", "--", "run.name=refused")
    done = cluster.user(sys.executable, "-m", "launch", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "invalid partition specified: nowhere" in done.stderr
    assert "partitions here: main, urgent" in done.stderr
    assert not (cluster.folder / "runs" / "refused").exists()


def test_gloo_is_told_its_interface_where_a_name_points_home(cluster: Cluster) -> None:
    """As Debian's installer writes /etc/hosts: the node's own name is 127.0.1.1. On the first node, and on another."""
    (cluster.folder / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 n1\n10.77.0.2 n2\n")
    ask = '. "$1"; choose_interface "$2"; echo "<$GLOO_SOCKET_IFNAME>"'
    words = ("bash", "-c", ask, "ask", str(ROOT / "launch" / "environment.sh"))
    assert "<>" in cluster.operate("on", "n1", *words, "n2")
    home = ("unshare", "--mount", "bash", "-c", f'mount --bind {cluster.folder}/hosts /etc/hosts; exec "$@"', "home")
    assert "<eth0>" in cluster.operate("on", "n1", *home, *words, "n2")
    assert "<eth0>" in cluster.operate("on", "n1", *home, *words, "n1")
