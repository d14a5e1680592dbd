"""Where the checks look: this rank, its host, the config, and the other ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dist_alexnet.config import Config
from dist_alexnet.doctor.board import Board
from dist_alexnet.environment import World
from dist_alexnet.job import Job, make_job
from shards.errors import InputError


@dataclass
class Site:
    """shards: how many of each set to open (0: all). planned: ranks that the run will have, where this is alone."""

    world: World
    host: str
    board: Board
    load: Callable[[], Config]
    shards: int = 16
    planned: int | None = None

    @cached_property
    def config(self) -> Config:
        """Raises ConfigError."""
        return self.load()

    @property
    def ranks(self) -> int:
        """Of the run: those that are here, and alone one model group unless somebody said how many there will be."""
        if self.world.launcher != "bare":
            return self.world.world_size
        return self.planned or self.config.parallel.group_ranks

    @cached_property
    def job(self) -> Job:
        """Raises InputErrors."""
        return make_job(self.config, self.ranks)


def standing_above(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists. Raises InputError where that is a file."""
    folder = folder.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"the folder {folder} cannot be made: {there} is a file; choose another")
    return there


def in_bytes(size: float) -> str:
    """A size for people: 12 MB, 1.5 GB."""
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
