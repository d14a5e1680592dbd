"""The world as the launchers describe it, from plain dicts."""

import socket
import subprocess
from pathlib import Path

import pytest

from dist_alexnet.environment import (
    World,
    has_wandb_key,
    prepare_rendezvous,
    quiet_wandb,
    read_world,
    wandb_mode,
)
from shards.errors import InputError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
}
SRUN = {
    "SLURM_JOB_ID": "40123",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_NTASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "n7",
}


def without(environ: dict[str, str], *keys: str) -> dict[str, str]:
    return {key: value for key, value in environ.items() if key not in keys}


def test_alone() -> None:
    assert read_world({}) == World(0, 1, 0, 1, "bare")


def test_torchrun() -> None:
    assert read_world(TORCHRUN) == World(3, 8, 1, 2, "torchrun")


def test_deepspeed_launcher() -> None:
    environ = {**without(TORCHRUN, "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"), "LOCAL_SIZE": "4"}
    assert read_world(environ) == World(3, 8, 1, 4, "deepspeed")


def test_srun() -> None:
    assert read_world(SRUN) == World(4, 5, 0, 1, "slurm")


@pytest.mark.parametrize(("node", "local_rank", "tasks_here"), [("0", "1", 2), ("1", "1", 2), ("2", "0", 1)])
def test_srun_tasks_of_each_node(node: str, local_rank: str, tasks_here: int) -> None:
    world = read_world({**SRUN, "SLURM_NODEID": node, "SLURM_LOCALID": local_rank})
    assert world.local_world_size == tasks_here


def test_batch_script_and_salloc_shell_are_alone() -> None:
    assert read_world(without(SRUN, "SLURM_STEP_ID")).launcher == "bare"


def test_interactive_step_is_one_task_of_a_larger_allocation() -> None:
    environ = {**SRUN, "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}
    environ["SLURM_STEP_TASKS_PER_NODE"] = "1"
    assert read_world(environ) == World(0, 1, 0, 1, "slurm")


def test_torchrun_inside_a_step_wins() -> None:
    assert read_world({**SRUN, **TORCHRUN}).launcher == "torchrun"


@pytest.mark.parametrize(
    "environ",
    [
        {**TORCHRUN, "WORLD_SIZE": "many"},
        without(TORCHRUN, "WORLD_SIZE"),
        {**TORCHRUN, "RANK": "8"},
        {**TORCHRUN, "RANK": "-1"},
        {**TORCHRUN, "LOCAL_RANK": "2"},
        {**SRUN, "SLURM_PROCID": "5"},
    ],
)
def test_a_world_that_cannot_be_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(InputError, match="start"):
        read_world(environ)


def test_rendezvous_alone_is_a_free_port_here() -> None:
    environ: dict[str, str] = {}
    prepare_rendezvous(read_world(environ), environ)
    assert environ["MASTER_ADDR"] == "127.0.0.1"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(environ["MASTER_PORT"])))
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"]) == ("0", "1", "0")


@pytest.mark.parametrize("start", [{}, SRUN])
def test_the_world_reads_the_same_after_the_rendezvous(start: dict[str, str]) -> None:
    environ = dict(start)
    world = read_world(environ)
    prepare_rendezvous(world, environ)
    assert read_world(environ) == world


def test_a_launcher_inside_a_prepared_process_is_seen() -> None:
    environ: dict[str, str] = {}
    prepare_rendezvous(read_world(environ), environ)
    assert read_world({**environ, **TORCHRUN}).launcher == "torchrun"


def test_rendezvous_of_srun() -> None:
    environ = dict(SRUN)
    prepare_rendezvous(read_world(environ), environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("n7", "20123")
    assert (environ["RANK"], environ["WORLD_SIZE"], environ["LOCAL_RANK"]) == ("4", "5", "0")


def test_rendezvous_of_srun_asks_scontrol_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="n1\nn2\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    environ = {**SRUN, "SLURM_STEP_NODELIST": "n[1-2];touch x"}
    prepare_rendezvous(read_world(environ), environ)
    assert environ["MASTER_ADDR"] == "n1"
    assert asked == [["scontrol", "show", "hostnames", "n[1-2];touch x"]]


def test_rendezvous_of_srun_keeps_what_the_user_exported() -> None:
    environ = {**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    prepare_rendezvous(read_world(environ), environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "5")


def test_no_scontrol_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(subprocess, "run", run)
    environ = {**SRUN, "SLURM_STEP_NODELIST": "n[1-2]"}
    with pytest.raises(InputError, match="export MASTER_ADDR"):
        prepare_rendezvous(read_world(environ), environ)


def test_torchrun_has_its_rendezvous() -> None:
    environ = dict(TORCHRUN)
    prepare_rendezvous(read_world(environ), environ)
    assert environ == TORCHRUN


def test_wandb_key_from_the_environment(tmp_path: Path) -> None:
    assert has_wandb_key({"WANDB_API_KEY": "k", "HOME": str(tmp_path)})
    assert not has_wandb_key({"WANDB_API_KEY": "", "HOME": str(tmp_path)})


@pytest.mark.parametrize("name", [".netrc", "_netrc"])
def test_wandb_key_from_netrc(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / name).chmod(0o600)
    home = {"HOME": str(tmp_path)}
    assert has_wandb_key(home)
    assert not has_wandb_key({**home, "WANDB_BASE_URL": "https://wandb.example.org"})


def test_broken_netrc_is_no_key(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine machine what\n")
    assert not has_wandb_key({"HOME": str(tmp_path)})


def test_wandb_mode(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert wandb_mode("auto", home) == "offline"
    assert wandb_mode("auto", {**home, "WANDB_API_KEY": "k"}) == "online"
    assert wandb_mode("auto", {**home, "WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}) == "disabled"
    assert wandb_mode("online", {**home, "WANDB_MODE": "disabled"}) == "online"


def test_wandb_reports_stay_where_the_user_wants_them() -> None:
    environ = {"WANDB_ERROR_REPORTING": "true"}
    quiet_wandb(environ)
    assert environ == {"WANDB_ERROR_REPORTING": "true"}
