"""What commands say, on which rank, and the files that they were asked to write beside it."""

import json
from pathlib import Path
from typing import Any

import typer


def rank() -> int:
    """Of this process, 0 where it is alone."""
    from dist_alexnet.environment import read_world

    return read_world().rank


def say_on_rank_0(text: str) -> None:
    """To stdout."""
    if rank() == 0:
        typer.echo(text)


def check_can_write(file: Path | None, option: str = "--json") -> None:
    """Before the long work and not after it. Raises InputError."""
    from shards.errors import InputError

    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise InputError(f"{option} {file} cannot be written: give a file name in a folder that exists")


def write_json(file: Path, value: dict[str, Any]) -> None:
    """A file that appears whole or not at all."""
    from shards import local

    local.write(file, f"{json.dumps(value, indent=2)}\n".encode())
