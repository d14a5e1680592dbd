"""A run's folder: whose it is, which start of it this is, and how it ended.

identity.json          what makes it this run and no other; written by the first start, compared by all others
config.yaml            the resolved config of the newest start
finetune.json          the checkpoint that the run began with, where there is one (finetune.py)
generations/g0002.yaml one file a start, created exclusively: that start's number and its resolved config
attempts.jsonl         a line a start and a line an end
outcome.json           how the newest start ended, for whoever launched it
checkpoints.url        where the checkpoints are, if checkpoint.url says so; there, run.json and generations/ keep the
                       place for this run, whatever becomes of the folder
"""

import json
import platform
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_alexnet.checkpoint.finding import POINTER, ROOT
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.config import Config, to_yaml
from dist_alexnet.environment import launch_id
from dist_alexnet.errors import RunFolderError
from dist_alexnet.track.jsonl import JsonLines, live_lines, read_lines, starts
from shards import local
from shards.errors import DistAlexnetError
from shards.storage import create

OWNER = "run.json"  # in the place of a run's checkpoints: whose it is
_OF_A_RUN = ("config.yaml", "metrics.jsonl", "generations", "checkpoints")


def claim(config: Config, identity: dict[str, Any], resume: str) -> None:
    """Make the run folder and the place of its checkpoints, or check that they are this run's (rank 0).

    Raises RunFolderError, InputError where nothing can be written there, StorageFault; overwrites nothing.
    """
    _claim_folder(config, identity, resume)
    try:
        _claim_place(config, identity, resume)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"checkpoint.url of run folder {config.run_folder} cannot be used: {error}") from error


def _claim_folder(config: Config, identity: dict[str, Any], resume: str) -> None:
    folder = config.run_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "identity.json"
        foreign = any((folder / name).exists() for name in _OF_A_RUN)
        if not known.exists() and not foreign and create(str(known), json.dumps(identity, indent=1).encode()):
            return
        if known.exists():
            if resume == "never":
                raise RunFolderError(
                    f"run folder {folder} holds a run already and --resume is never: choose another run.name, "
                    "or --resume auto"
                )
            found = json.loads(known.read_text())
            if not isinstance(found, dict):
                raise ValueError("identity.json is not what a run wrote")
            check_identity(found, identity, f"run folder {folder}")
        else:
            raise RunFolderError(f"{folder} holds files of something that is not this run: choose another run.name")
    except (OSError, ValueError) as error:
        raise RunFolderError(f"run folder {folder} cannot be used: {error}") from error


def _claim_place(config: Config, identity: dict[str, Any], resume: str) -> None:
    """Where checkpoint.url is another than at the last start, or has been emptied, `auto` would begin anew: refused."""
    folder, url = config.run_folder, config.checkpoint.url
    place = None if url is None else Place.at(url).absolute()
    pointer, going_on = folder / POINTER, resume == "auto" and (folder / "generations").exists()
    before = Place.at(pointer.read_text().strip()) if pointer.exists() else None
    if going_on and before != place:
        there = before or folder / ROOT
        raise RunFolderError(
            f"run folder {folder} has its checkpoints in {there}, checkpoint.url is {place or 'not set'}: set it back, "
            f"or go on from them by --resume {there}"
        )
    if place is None:
        pointer.unlink(missing_ok=True)
        return
    owner = place / OWNER
    if going_on and not owner.exists():
        raise RunFolderError(
            f"{place} (checkpoint.url) has lost {OWNER}: bring its files back, or choose another run.name"
        )
    if not create(owner.url, json.dumps({"run": config.run.name, "identity": identity}, indent=1).encode()):
        _check_owner(json.loads(owner.read()), config.run.name, identity, f"{place} (checkpoint.url)")
        if resume == "never":
            raise RunFolderError(
                f"{place} (checkpoint.url) holds a run already and --resume is never: choose another, or --resume auto"
            )
    local.write(pointer, f"{place.url}\n".encode())


def _check_owner(known: Any, name: str, identity: dict[str, Any], where: str) -> None:
    """Two runs in one place would take each other's checkpoints for theirs, and away."""
    if known["run"] != name:
        raise RunFolderError(
            f"{where} is of the run {known['run']!r}, this is {name!r}: give each run a place of its own"
        )
    check_identity(known["identity"], identity, where)


def check_identity(known: dict[str, Any], identity: dict[str, Any], where: str) -> None:
    """Raise RunFolderError naming what differs between two runs: the first key with both values, and the other keys."""
    differing = [key for key in dict.fromkeys([*identity, *known]) if known.get(key) != identity.get(key)]
    if not differing:
        return
    first, *others = differing
    theirs, ours = known.get(first), identity.get(first)
    if isinstance(theirs, dict) and isinstance(ours, dict):
        inside = next(key for key in [*ours, *theirs] if theirs.get(key) != ours.get(key))
        first, theirs, ours = f"{first}.{inside}", theirs.get(inside), ours.get(inside)
    raise RunFolderError(
        f"{where} is of a run with {first} = {json.dumps(theirs)}, this config has {json.dumps(ours)}"
        + (f" (and other {', '.join(others)})" if others else "")
        + ": choose another run.name, or set it back"
    )


def take_generation(config: Config) -> int:
    """The number of this start (rank 0): exclusive creation of its file decides between starts that race.

    With checkpoint.url it is taken there, too: a start elsewhere, with a run folder of its own, gets another one.
    Raises RunFolderError where the folder cannot be written, StorageFault.
    """
    folder, url = config.run_folder / "generations", config.checkpoint.url
    place = None if url is None else Place.at(url) / folder.name
    try:
        folder.mkdir(exist_ok=True)
        taken = (int(path.stem[1:]) for path in folder.glob("g*.yaml") if path.stem[1:].isdecimal())
        elsewhere = (int(name[1:]) for name in (place.names() if place else []) if name[1:].isdecimal())
        number = 1 + max((*taken, *elsewhere), default=0)
        while not (
            (place is None or create((place / f"g{number:04d}").url, f"{config.run_folder}\n".encode()))
            and create(str(folder / f"g{number:04d}.yaml"), to_yaml(config).encode())
        ):
            number += 1
        local.write(config.run_folder / "config.yaml", to_yaml(config).encode())
    except OSError as error:
        raise RunFolderError(f"run folder {config.run_folder} cannot be used: {error}") from error
    return number


class Attempt:
    """One start in attempts.jsonl, and its end in outcome.json (rank 0)."""

    def __init__(
        self,
        folder: Path,
        generation: int,
        step: int,
        stands_on: int | None,
        layout: dict[str, int],
        hosts: list[str],
    ) -> None:
        """`stands_on`: the generation that wrote the checkpoint taken up; None: from the start, or another run's."""
        self._folder, self._generation = folder, generation
        (folder / "outcome.json").unlink(missing_ok=True)  # an earlier start's end is not this one's
        self._lines = JsonLines(folder / "attempts.jsonl", generation)
        start = {"event": "start", "step": step, "from": stands_on, "time_s": time.time(), "launch": launch_id()}
        self._lines.append({**start, "layout": layout, "hosts": hosts})
        self._lines.sync()

    def end(self, cause: str, code: int, step: int) -> None:
        """Say why it ended, with which exit code, after how many steps. Not where another rank has (end_if_first)."""
        lines = read_lines(self._folder / "attempts.jsonl")
        ends = [line for line in lines if line["event"] == "end" and line["generation"] == self._generation]
        if not ends:
            self._end(cause, code, step)
        if not ends or ends[-1]["code"] is None:  # rolled back, and it came no further
            write_outcome(self._folder, self._generation, cause, code)

    def rolled_back(self, cause: str, step: int) -> None:
        """This generation ends at `step`, and the same processes go on with another: no end for who launched them."""
        self._end(f"rolled back: {cause}", None, step)

    def _end(self, cause: str, code: int | None, step: int) -> None:
        self._lines.append({"event": "end", "step": step, "time_s": time.time(), "cause": cause, "code": code})
        self._lines.close()


def write_outcome(folder: Path, generation: int | None, cause: str, code: int) -> None:
    """How a start ended, in one file that appears whole: launchers hide exit codes.

    Where it cannot be written nothing is said: it is called when something else has gone wrong.
    """
    record = {"generation": generation, "cause": cause, "code": code}
    with suppress(OSError):
        if generation is not None and (folder / "generations" / f"g{generation + 1:04d}.yaml").exists():
            return  # this start has a successor, whose end it is not
        local.write(folder / "outcome.json", json.dumps(record).encode())


def end_if_first(folder: Path, generation: int, cause: str, step: int) -> bool:
    """Write down that this start has ended with `cause`, for rank 0, which may be what hangs. Any rank calls it.

    False where a rank has said before why it ends.
    """
    path = folder / "logs" / f"cause-g{generation:04d}.txt"
    with suppress(OSError, DistAlexnetError):
        path.parent.mkdir(exist_ok=True)
        if not create(str(path), cause.encode()):
            return False
        lines = JsonLines(folder / "attempts.jsonl", generation)
        lines.append({"event": "end", "step": step, "time_s": time.time(), "cause": cause, "code": 1})
        lines.close()
        write_outcome(folder, generation, cause, 1)
    return True


def first_cause(folder: Path, generation: int, mine: str) -> str:
    """What the first rank of this start to fail gave as its cause: exclusive creation of a file decides.

    A rank writes it before it leaves the process group, so it is there when the others notice.
    """
    path = folder / "logs" / f"cause-g{generation:04d}.txt"
    with suppress(OSError, DistAlexnetError):
        path.parent.mkdir(exist_ok=True)
        if not create(str(path), mine.encode()):
            return path.read_text() or mine
    return mine


def worst_shards(folder: Path, count: int = 3) -> str:
    """The training shards with the most pictures in the run's ledger, over all its starts: "URL (12), URL (3)"."""
    lines = live_lines(folder / "ledger.jsonl", starts(folder / "attempts.jsonl"))
    worst = Counter(str(line.get("url")) for line in lines if "split" not in line).most_common(count)
    return ", ".join(f"{url} ({pictures})" for url, pictures in worst)


def host_name() -> str:
    return platform.node()
