"""What lies where: the root of a run's checkpoints, and the committed ones in it, whole or not."""

import re
from pathlib import Path

from dist_alexnet.checkpoint.commit import COMMIT
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.errors import CheckpointError

ROOT = "checkpoints"  # of a run folder, where checkpoint.url is not set
POINTER = "checkpoints.url"  # in a run folder: where they are instead, on one line
LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")
_GENERATION = re.compile(r"g(\d{4,})")

Run = Path | Place  # a run folder, or the root of its checkpoints


def root_of(run: Run) -> Place:
    """The root of a run's checkpoints. Raises StorageFault where its folder cannot be read."""
    if isinstance(run, Place):
        return run
    folder = Place.at(run)
    return _pointed_at(folder) or folder / ROOT


def folder_of(root: Place, step: int, generation: int) -> Place:
    return root / f"step-{step:08d}" / f"g{generation:04d}"


def step_of(folder: Place) -> int:
    """Of a checkpoint's folder."""
    return int(folder.parent.name.removeprefix("step-"))


def generation_of(folder: Place) -> int:
    """Of a checkpoint's folder."""
    return int(folder.name.removeprefix("g"))


def steps_in(root: Place) -> list[Place]:
    """Folders of steps, newest first. Raises StorageFault where the root cannot be listed: that is no empty one."""
    steps = [name for name in root.names() if _STEP.fullmatch(name)]
    return [root / name for name in sorted(steps, key=lambda name: int(name[5:]), reverse=True)]


def generations_in(step: Place) -> list[Place]:
    """Folders of a step, committed or not, newest generation first."""
    found = [name for name in step.names() if _GENERATION.fullmatch(name)]
    return [step / name for name in sorted(found, key=lambda name: int(name[1:]), reverse=True)]


def committed_in(root: Place) -> list[Place]:
    """Folders with a COMMIT, newest step first, newest generation first within a step."""
    return [folder for step in steps_in(root) for folder in generations_in(step) if (folder / COMMIT).exists()]


def root_named(given: str | Path | Place) -> Place:
    """The root that a user means by a run folder, or by the URL of a run's checkpoints.

    Raises CheckpointError where no checkpoint was committed there.
    """
    place = Place.at(given)
    for root in _roots(place):
        if committed_in(root):
            return root
    raise _none_at(place)


def resolve(given: str | Path | Place) -> Place:
    """The checkpoint that a user names: its folder, its step's, or its run's (the newest COMMIT).

    Raises CheckpointError where there is none.
    """
    place = Place.at(given)
    if (place / COMMIT).exists():
        return place
    if _STEP.fullmatch(place.name):
        for folder in generations_in(place):
            if (folder / COMMIT).exists():
                return folder
    return committed_in(root_named(place))[0]


def names_one(given: str | Path | Place) -> bool:
    """Whether `given` is a checkpoint or a step, and not a whole run."""
    place = Place.at(given)
    return (place / COMMIT).exists() or bool(_STEP.fullmatch(place.name) and generations_in(place))


def _roots(place: Place) -> list[Place]:
    """Where the checkpoints may be of what `place` is."""
    pointed_at = None if place.path is None else _pointed_at(place)
    return [place / ROOT, place] if pointed_at is None else [pointed_at]


def _pointed_at(folder: Place) -> Place | None:
    pointer = folder / POINTER
    return Place.at(pointer.read().decode().strip()) if pointer.exists() else None


def _none_at(place: Place) -> CheckpointError:
    return CheckpointError(
        f"{place} holds no committed checkpoint, expected a run folder, the URL of a run's checkpoints, or a folder "
        "such as RUN/checkpoints/step-00000120: name one that has a COMMIT file"
    )
