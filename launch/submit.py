"""From a config and a wish for nodes to a job in Slurm's queue: check, copy, write a script people can read, submit."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

from dist_alexnet.config import Config, batches_on, load_config
from dist_alexnet.network.spec import PRESETS
from launch import slurm
from launch.snapshot import NETWORK, make_launch_folder, take_back
from shards.errors import InputError

HERE = Path(__file__).parent
WARN_S = 300  # before the end of the job's time, where there is so much


class _Script(Template):
    """@{name}, because $ is the shell's."""

    delimiter = "@"


@dataclass(frozen=True)
class Wish:
    """What is asked of Slurm."""

    nodes: int
    ranks_per_node: int
    time: str
    gpus_per_node: int = 0
    style: Literal["torchrun", "srun"] = "torchrun"
    chain: int = 1  # jobs, each after the one before
    array: int = 1  # tasks of one job, one at a time
    max_requeues: int = 0
    max_restarts: int = 1  # by torchrun, without leaving the nodes
    cpus_per_rank: int = 1
    options: tuple[str, ...] = ()  # of sbatch, such as --partition=main

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Submitted:
    """Where to look: job numbers in order, and files."""

    jobs: tuple[str, ...]
    run_folder: Path
    script: Path
    logs: tuple[Path, ...]


def check(config_file: Path, overrides: list[str], wish: Wish, data_too: bool = True) -> Config:
    """The config, if it fits the world that is wished for. Raises InputError.

    data_too: let the trainer itself look at data and network as well (--dry-run), which takes some seconds.
    """
    config = load_config(config_file, overrides)
    slurm.seconds(wish.time)
    for option in wish.options:
        if not option.startswith("-") or not option.isprintable():
            raise InputError(f"option {option!r} for sbatch is not one, expected something such as --mem=0")
    batches_on(config, wish.world_size)
    if ":" in str(config.run_folder.absolute()):
        raise InputError(
            f"run folder {config.run_folder.absolute()} has a ':', which PYTHONPATH cannot hold: change run.dir"
        )
    kind = _file_system(config.run_folder)
    if kind in ("tmpfs", "ramfs", "devtmpfs"):
        raise InputError(
            f"run folder {config.run_folder} lies in this host's memory ({kind}), expected a folder that all nodes "
            "see: change run.dir"
        )
    if data_too:
        _dry_run(config_file, overrides, wish)
    return config


def submit(config_file: Path, overrides: list[str], wish: Wish, config: Config) -> Submitted:
    """Copy config and code into the run folder, write the script there, and submit it: once, or as a chain.

    Raises InputError where Slurm refuses; then nothing is left, in its queue or in the run folder, or it says what.
    """
    slurm.check()
    run_folder = config.run_folder.absolute()
    launch_folder = make_launch_folder(run_folder, config_file, _network_file(config))
    script = launch_folder / "job.sbatch"
    jobs: list[str] = []
    try:
        script.write_text(render(config, overrides, wish, launch_folder))
        for _ in range(wish.chain):
            jobs.append(slurm.submit(str(script), [f"--dependency=afterany:{jobs[-1]}"] if jobs else []))
    except InputError as error:
        if not slurm.cancel(jobs):  # what they run stays, too
            raise InputError(f"{error}; still in the queue: scancel {' '.join(jobs)}") from error
        take_back(launch_folder)
        raise
    tasks = [f"{jobs[0]}_{task}" for task in range(1, wish.array + 1)] if wish.array > 1 else jobs
    return Submitted(tuple(jobs), run_folder, script, tuple(launch_folder / f"slurm-{task}.out" for task in tasks))


def render(config: Config, overrides: list[str], wish: Wish, launch_folder: Path) -> str:
    """The batch script."""
    run_folder = config.run_folder.absolute()
    filled = {
        "title": f"run {config.run.name} on {wish.nodes} x {wish.ranks_per_node} ranks.",
        "directives": "\n".join(f"#SBATCH {line}" for line in _directives(config, wish, launch_folder)),
        "style": wish.style,
        "max_requeues": str(wish.max_requeues),
        "max_failures": "3",
        "job": '"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"' if wish.array > 1 else '"$SLURM_JOB_ID"',
        "ranks_per_node": str(wish.ranks_per_node),
        "max_restarts": str(wish.max_restarts),
        "script": shlex.quote(str(launch_folder / "job.sbatch")),
        "folder": shlex.quote(str(Path.cwd())),
        "launch_folder": shlex.quote(str(launch_folder)),
        "run_folder": shlex.quote(str(run_folder)),
        "python": shlex.quote(sys.executable),
        "train": " ".join(shlex.quote(word) for word in (str(launch_folder / "config.yaml"), *overrides)),
    }
    if _network_file(config) is not None:
        filled["train"] += " " + shlex.quote(f"network.name={launch_folder / NETWORK}")
    return _Script((HERE / "slurm.sbatch").read_text()).safe_substitute(filled)  # the shell has its own uses of @


def _network_file(config: Config) -> Path | None:
    """The file that describes the network, where it is no preset."""
    preset = PRESETS / f"{config.network.name}.yaml"
    return None if preset.is_file() else Path(config.network.name)


def _directives(config: Config, wish: Wish, launch_folder: Path) -> list[str]:
    limit_s = slurm.seconds(wish.time)
    warn_s = WARN_S if limit_s is None else min(WARN_S, limit_s // 4)
    tasks = wish.ranks_per_node if wish.style == "srun" else 1
    number = "%A_%a" if wish.array > 1 else "%j"
    lines = [
        f"--job-name={config.run.name}",
        f"--nodes={wish.nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={wish.cpus_per_rank * wish.ranks_per_node // tasks}",
        f"--time={wish.time}",
        f"--signal=B:USR1@{warn_s}",
        "--requeue",
        "--open-mode=append",
        "--output=" + shlex.quote(f"{str(launch_folder).replace('%', '%%')}/slurm-{number}.out"),
    ]
    if wish.gpus_per_node:
        lines.append(f"--gpus-per-node={wish.gpus_per_node}")
    if wish.array > 1:
        lines.append(f"--array=1-{wish.array}%1")
    return [*lines, *(_quoted(option) for option in wish.options)]


def _quoted(option: str) -> str:
    """As sbatch reads it in a script: a value may have blanks, or a # that would begin a comment."""
    name, sign, value = option.partition("=")
    return f"{name}{sign}{shlex.quote(value)}" if value else option


def _dry_run(config_file: Path, overrides: list[str], wish: Wish) -> None:
    """What the trainer says of config, data and network on that world. Raises InputError in its words."""
    world = [f"WORLD_SIZE={wish.world_size}", f"LOCAL_WORLD_SIZE={wish.ranks_per_node}", "RANK=0", "LOCAL_RANK=0"]
    train = [sys.executable, "-m", "dist_alexnet", "train", str(config_file), *overrides, "--dry-run"]
    done = subprocess.run(["env", *world, *train], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise InputError(said[-1] if said else f"the check before submitting failed: {done.stderr[-500:]}")


def _file_system(path: Path) -> str:
    """Kind of the file system that `path` is, or will be, on; nothing where it cannot be told."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    try:
        command = ["stat", "--file-system", "--format=%T", str(there)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
