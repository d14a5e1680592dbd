"""The one reader of environment variables: who am I in the world, where do the ranks meet, has W&B a key.

Every function takes the mapping as an argument, so that all of it is tested with plain dicts.
"""

import netrc
import os
import re
import socket
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from shards.errors import InputError

Launcher = Literal["bare", "torchrun", "slurm", "deepspeed"]
WandbMode = Literal["online", "offline", "disabled"]

# prepare_rendezvous sets RANK itself, so a second read_world could no longer tell who started the process
_LAUNCHER_KEY = "DIST_ALEXNET_LAUNCHER"


@dataclass(frozen=True)
class World:
    """This process among its peers, as plain integers."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: Launcher


def read_world(environ: Mapping[str, str] = os.environ) -> World:
    """Who started this process and which rank it is.

    RANK comes from torchrun (which also sets TORCHELASTIC_RUN_ID) or from the deepspeed launcher; SLURM_PROCID counts
    only inside a step of srun, one task a rank. Otherwise the process is alone.

    Raises InputError where a variable is missing, not a whole number, or the rank lies outside the world.
    """
    if "RANK" in environ:
        return _checked(_from_rank(environ))
    if "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ:
        return _checked(_from_slurm(environ))
    return World(rank=0, world_size=1, local_rank=0, local_world_size=1, launcher="bare")


def prepare_rendezvous(world: World, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch.distributed reads (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE, LOCAL_RANK) where no launcher did.

    Under srun an address and port that the user exported are kept. Raises InputError where the first host of the
    job cannot be found.
    """
    if world.launcher in ("torchrun", "deepspeed"):
        return
    if world.launcher == "slurm":
        if "MASTER_ADDR" not in environ:
            environ["MASTER_ADDR"] = _first_slurm_host(environ)
        if "MASTER_PORT" not in environ:
            environ["MASTER_PORT"] = str(20000 + _integer(environ, "SLURM_JOB_ID") % 20000)
    else:
        environ["MASTER_ADDR"] = "127.0.0.1"
        environ["MASTER_PORT"] = str(_free_port())
    environ["RANK"] = str(world.rank)
    environ["WORLD_SIZE"] = str(world.world_size)
    environ["LOCAL_RANK"] = str(world.local_rank)
    environ["LOCAL_WORLD_SIZE"] = str(world.local_world_size)
    environ[_LAUNCHER_KEY] = world.launcher


def prepare_determinism(environ: MutableMapping[str, str] = os.environ) -> None:
    """Ask cuBLAS for the same sums every time, unless the user chose; to be called before the first use of a GPU."""
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def wandb_mode(wanted: str, environ: Mapping[str, str] = os.environ) -> WandbMode:
    """What `log.wandb.mode` means on this machine: "auto" is WANDB_MODE if that is set, else online where there is a
    key and offline where there is none. Any other value is returned as it is.
    """
    if wanted != "auto":
        return cast(WandbMode, wanted)
    asked = environ.get("WANDB_MODE", "")
    if asked in get_args(WandbMode):
        return cast(WandbMode, asked)
    return "online" if has_wandb_key(environ) else "offline"


def wandb_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where W&B's service is."""
    return environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def has_wandb_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether W&B would find an API key without asking: in WANDB_API_KEY or in the user's netrc file."""
    if environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(wandb_url(environ)).hostname or ""
    home = Path(environ.get("HOME") or Path.home())
    files = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    return any(_netrc_has(file, host) for file in files)


def is_restart(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process again after a failure, with the arguments of the first time."""
    return environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def launch_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """torchrun's name for one launch: the same in a start and in what it starts again; None without torchrun."""
    return environ.get("TORCHELASTIC_RUN_ID")


def job_ends_at_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """When the job's time is over, of time.time(), where Slurm says so."""
    return float(_integer(environ, "SLURM_JOB_END_TIME")) if environ.get("SLURM_JOB_END_TIME") else None


def for_child(extra: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process to start: this one's, and `extra`."""
    return {**environ, **extra}


# Names of variables that change numbers or how ranks talk, for a run's record.
_RECORDED = re.compile(
    r"(CUBLAS|CUDA|CUDNN|DNNL|DS|FI|GLOO|HIP|KMP|MKL|NCCL|NVIDIA|OMP|ONEDNN|OPENBLAS|PYTORCH|ROCR|TORCH|UCX|XLA)_"
    r"|LD_PRELOAD$|PYTHONHASHSEED$"
)
_SECRET = re.compile(r"AUTH|CREDENTIAL|KEY|PASS|SECRET|TOKEN", re.IGNORECASE)


def recorded_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that may change a run's numbers, by an allow-list of names; none whose name sounds like a secret."""
    return {
        name: value for name, value in sorted(environ.items()) if _RECORDED.match(name) and not _SECRET.search(name)
    }


def tell_deepspeed(device_type: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Name the accelerator to DeepSpeed before it is imported, or it guesses, with a warning a rank on CPUs."""
    if device_type == "cpu":
        environ.setdefault("DS_ACCELERATOR", "cpu")


def torch_extensions_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where torch keeps the operators that it compiles."""
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")


def gpus_hidden(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody chose which GPUs are seen, none of them perhaps."""
    return "CUDA_VISIBLE_DEVICES" in environ


def quiet_wandb(environ: MutableMapping[str, str] = os.environ) -> None:
    """Turn off W&B's reports about itself, unless the user chose: where its service does not answer, they hold a
    process that is done for another 20 s. To be called before wandb is imported.
    """
    environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _netrc_has(file: Path, host: str) -> bool:
    try:
        return host in netrc.netrc(file).hosts
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _from_rank(environ: Mapping[str, str]) -> World:
    launcher: Launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "deepspeed"
    if launcher == "deepspeed" and environ.get(_LAUNCHER_KEY) in get_args(Launcher):
        launcher = cast(Launcher, environ[_LAUNCHER_KEY])
    world_size = _integer(environ, "WORLD_SIZE")
    # torchrun says LOCAL_WORLD_SIZE, the deepspeed launcher LOCAL_SIZE
    local_key = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environ else "LOCAL_SIZE"
    return World(
        rank=_integer(environ, "RANK"),
        world_size=world_size,
        local_rank=_integer(environ, "LOCAL_RANK"),
        local_world_size=_integer(environ, local_key) if local_key in environ else world_size,
        launcher=launcher,
    )


def _from_slurm(environ: Mapping[str, str]) -> World:
    # the step's own count where there is one: the interactive step of salloc is one task of a larger SLURM_NTASKS
    size_key = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    world_size = _integer(environ, size_key)
    return World(
        rank=_integer(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environ, "SLURM_LOCALID"),
        local_world_size=_slurm_tasks_here(environ, world_size),
        launcher="slurm",
    )


def _slurm_tasks_here(environ: Mapping[str, str], world_size: int) -> int:
    """Tasks on this node, from a list such as "4(x2),3": two nodes of 4, one of 3."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found:
            counts += [int(found[1])] * int(found[2] or 1)
    node = _integer(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    return counts[node] if node < len(counts) else world_size


def _checked(world: World) -> World:
    for name, rank, size in (
        ("rank", world.rank, world.world_size),
        ("local rank", world.local_rank, world.local_world_size),
    ):
        if not 0 <= rank < size:
            raise InputError(
                f"{name} {rank} lies outside a world of {size} ({world.launcher}); "
                "start every rank with the same launcher and the same number of processes"
            )
    return world


def _integer(environ: Mapping[str, str], key: str) -> int:
    value = environ.get(key)
    if value is None or not value.isascii() or not value.isdigit():
        raise InputError(
            f"environment variable {key} is {value!r}, expected a whole number; "
            "start the run with torchrun, srun or the deepspeed launcher, or unset RANK to run alone"
        )
    return int(value)


def _first_slurm_host(environ: Mapping[str, str]) -> str:
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    if re.fullmatch(r"[A-Za-z0-9._-]+", hosts):  # one plain name: nothing to expand
        return hosts
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise InputError(
            f"`scontrol show hostnames` could not name the first host of {hosts!r} ({type(error).__name__}); "
            "export MASTER_ADDR with the host of rank 0"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
