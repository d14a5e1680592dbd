"""What a run records of itself at each start, in generations/gNNNN.json, so that it can be had again.

Versions, layout, seed, DeepSpeed's settings, hosts, command line, the git state of the user's folder and of the
package, and the variables that change numbers. What cannot be found out is null: a record never delays or ends a run.
"""

import hashlib
import json
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from dist_alexnet.config import Config
from dist_alexnet.data.decode import decoder_here, libraries
from dist_alexnet.deepspeed_json import deepspeed_json
from dist_alexnet.environment import recorded_variables
from shards import local
from shards.storage import shown

GIT_S = 5.0  # for each question; a folder on a slow disk has no answer then
PACKAGES = (
    "dist-alexnet",
    "torch",
    "deepspeed",
    "numpy",
    "pillow",
    "simplejpeg",
    "nvidia-nvimgcodec-cu12",
    "wandb",
    "fsspec",
)
_SECRET = re.compile(r"(?i)([\w.-]*(?:auth|credential|key|pass|secret|token)[\w.-]*)=(?!=).*")
_NO_SECRET = re.compile(r"(?i)log\.sample_keys")  # a setting of ours that only sounds like one

T = TypeVar("T")


def record_start(config: Config, generation: int, layout: dict[str, int], hosts: Sequence[str], step: int) -> None:
    """Write the record of this start (rank 0), beside training."""
    threading.Thread(target=_write, args=(config, generation, layout, hosts, step), daemon=True).start()


def _write(config: Config, generation: int, layout: dict[str, int], hosts: Sequence[str], step: int) -> None:
    world_size = layout["data"] * layout["replicas"] * layout["columns"]
    record = {
        "generation": generation,
        "step": step,
        "seed": config.run.seed,
        "deterministic": config.run.deterministic,
        "layout": layout,
        "hosts": list(hosts),
        "command": without_secrets(sys.argv),
        "versions": versions(),
        "decoder": _found(lambda: decoder_here(config.data.decoder)),
        "devices": _found(_devices),
        "deepspeed": _found(lambda: deepspeed_json(config, world_size)),
        "variables": {name: shown(value) for name, value in recorded_variables().items()},
        "git": {"folder": git_state(Path.cwd()), "package": _found(_git_of_package)},
    }
    with suppress(OSError):
        path = config.run_folder / "generations" / f"g{generation:04d}.json"
        local.write(path, json.dumps(record, indent=1).encode())


def versions() -> dict[str, str | None]:
    """Of all that a run's bits may depend on; null where it is not there."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        **(_found(libraries) or {}),
        "cuda": torch.version.cuda,
        "cudnn": _found(_cudnn),
        "nccl": _found(_nccl),
        "driver": _found(_driver),
    }


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be read by others: no user, password or query in a URL, no value of a secret's name."""
    safe = []
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if _SECRET.fullmatch(argument) and not _NO_SECRET.match(argument):
            safe.append(f"{name}=...")
        else:
            safe.append(f"{name}={shown(value)}" if sign else shown(argument))
    return safe


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, whether it is changed, and a digest of the change; None where it is no checkout or git does not say."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status, change = (
        _git(folder, "status", "--porcelain", "--untracked-files=no"),
        _git(folder, "diff", "--no-ext-diff", "HEAD"),
    )
    return {
        "commit": commit.strip(),
        "changed": None if status is None else bool(status.strip()),
        "diff_sha256": hashlib.sha256(change.encode()).hexdigest()[:16] if change else None,
    }


def _git_of_package() -> dict[str, Any] | None:
    """None where the package is installed and not a checkout, be it inside of somebody's checkout."""
    here = Path(__file__).parent
    return git_state(here) if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is not None else None


def _git(folder: Path, *arguments: str) -> str | None:
    # no optional locks: a record must not be in the way of somebody who works in that folder
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _devices() -> list[str]:
    """GPUs of this host that the process sees; none on CPUs."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _cudnn() -> str | None:
    found: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return None if found is None else str(found)


def _nccl() -> str | None:
    if not torch.cuda.is_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _driver() -> str | None:
    found = re.search(r"(\d+\.\d+[.\d]*)", Path("/proc/driver/nvidia/version").read_text())
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _found(look: Callable[[], T]) -> T | None:
    """What `look` finds; None where it cannot."""
    try:
        return look()
    except Exception:  # whatever a library raises: a record is no reason to end a run
        return None
