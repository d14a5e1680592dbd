"""Talking to Slurm: its words for time, and its commands, whose complaints become one sentence."""

import re
import subprocess
from collections.abc import Sequence

from shards.errors import InputError

_ANSWER_S = 60.0  # a controller that is away holds sbatch as long


def seconds(time: str) -> int | None:
    """A time as Slurm writes it (30, 30:00, 8:00:00, 2-0, 2-12:00, 2-12:00:00); None: unlimited. Raises InputError."""
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time, re.ASCII)
    if not found:
        raise InputError(
            f"--time is {time!r}, expected minutes or a time such as 30:00 (minutes), 8:00:00 (hours), 2-12 (days)"
        )
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found[1] is not None or found[4] is not None:
        total = 86400 * days + 3600 * first + 60 * second + third
    else:
        total = 60 * first + second
    if total == 0:
        raise InputError("--time is 0, expected more")
    return total


def submit(script: str, options: Sequence[str] = ()) -> str:
    """Hand a script to sbatch; returns the job's number. Raises InputError with Slurm's reason: nothing was taken."""
    done = _run(["sbatch", "--parsable", *options, script])
    if done.returncode:
        raise InputError(f"Slurm did not take the job: {_reason(done.stderr)}{_partitions(done.stderr)}")
    return done.stdout.strip().split(";")[0]  # NUMBER, or NUMBER;CLUSTER


def cancel(jobs: Sequence[str]) -> bool:
    """Take jobs out of the queue again; False where Slurm did not say that it has."""
    try:
        return not jobs or _run(["scancel", *jobs]).returncode == 0
    except InputError:
        return False


def check() -> None:
    """Raise InputError where there is no Slurm, or no answer from it."""
    if _run(["sinfo", "--noheader", "--format=%P"]).returncode:
        raise InputError("sinfo finds no Slurm controller: ask on this cluster's login node, and try again later")


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no {command[0]} here: Slurm is not installed on this host, go to the cluster's login node (or "
            "use `python -m launch local`)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{command[0]} had no answer from Slurm's controller in {_ANSWER_S:.0f} s: look with squeue before you try "
            "again"
        ) from error


def _reason(stderr: str) -> str:
    """sbatch's own words, without the name of the program, on one line."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(line for line in lines if line) or "no reason given"


def _partitions(stderr: str) -> str:
    if "partition" not in stderr.lower():
        return ""
    names = _run(["sinfo", "--noheader", "--format=%R"]).stdout.split()
    return f" (partitions here: {', '.join(dict.fromkeys(names))})" if names else ""
