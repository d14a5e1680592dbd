"""What a job takes along into its run's folder, so that nothing that is edited while it waits can change it.

<run folder>/launches/0001/   config.yaml, network.yaml (unless it is a preset), code/ (our packages), job.sbatch, and
                              what Slurm writes
"""

import shutil
from pathlib import Path

from shards.errors import InputError

PACKAGES = ("dist_alexnet", "shards", "launch")
NETWORK = "network.yaml"


def make_launch_folder(run_folder: Path, config: Path, network: Path | None = None) -> Path:
    """A new numbered folder in the run's with copies of the config, of the network's file and of our code.

    Raises InputError; then nothing is left of it.
    """
    folder: Path | None = None
    try:
        folder = _next_folder(run_folder / "launches")
        shutil.copyfile(config, folder / "config.yaml")
        if network is not None:
            shutil.copyfile(network, folder / NETWORK)
        for package in PACKAGES:
            shutil.copytree(
                Path(__file__).parents[1] / package,
                folder / "code" / package,
                ignore=shutil.ignore_patterns("__pycache__"),
                ignore_dangling_symlinks=True,  # some editors' locks
            )
    except (OSError, shutil.Error) as error:
        if folder is not None:
            take_back(folder)
        raise InputError(f"run folder {run_folder} cannot be written: {error}") from error
    return folder


def take_back(folder: Path) -> None:
    """Remove a launch folder whose job was not taken, and the folders above it that were made for it."""
    shutil.rmtree(folder, ignore_errors=True)
    for above in (folder.parent, folder.parent.parent):
        try:
            above.rmdir()
        except OSError:  # not empty: it holds a run
            return


def _next_folder(launches: Path) -> Path:
    launches.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in launches.iterdir() if path.name.isdecimal()), default=0)
    while True:
        try:
            (folder := launches / f"{number:04d}").mkdir()
            return folder
        except FileExistsError:  # somebody else's, just now
            number += 1
