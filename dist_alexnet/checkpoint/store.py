"""Where checkpoints lie, and when one counts.

    <run folder>/checkpoints/step-00000120/g0002/   chunks of every rank, contents.json, and at last COMMIT
    <run folder>/checkpoints/latest                 a hint for people, never read

g0002 is the generation: the number of the start of the run that wrote it, so two starts never write the same name.
COMMIT (files, bytes, sha256, step, state, layout, versions) is written after every rank has written everything; a
folder without it does not exist for anybody who reads.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from dist_alexnet.checkpoint.flat import (
    CONTENTS,
    FlatChunk,
    FlatReader,
    FlatWriter,
    check_file_name,
    read_contents,
    sync_folder,
    write_durably,
)
from dist_alexnet.engine import Fragment
from dist_alexnet.errors import CheckpointError
from dist_alexnet.parallel.agree import on_every_rank, on_first_rank
from shards.errors import StorageFault

COMMIT = "COMMIT"
_STEP = re.compile(r"step-(\d{8,})")
_GENERATION = re.compile(r"g(\d{4,})")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint, as COMMIT promises it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """What COMMIT says. `state` is the trainer's: samples seen, counters, W&B id, config, identity."""

    step: int
    generation: int
    files: tuple[FileRecord, ...]
    layout: dict[str, Any]
    versions: dict[str, str]
    state: dict[str, Any]
    version: int = 1


@dataclass(frozen=True)
class Found:
    """A committed checkpoint on disk."""

    folder: Path
    commit: Commit


def save(
    run_folder: Path,
    fragments: Iterable[Fragment],
    *,
    step: int,
    generation: int,
    layout: dict[str, Any],
    versions: dict[str, str],
    state: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write one checkpoint with all ranks and commit it. Returns its folder. Raises StorageFault on every rank alike.

    group: of all ranks, with which they agree where another thread writes; fragments may be of any device.
    """
    folder = run_folder / "checkpoints" / f"step-{step:08d}" / f"g{generation:04d}"
    chunks = {_key(part): FlatChunk(part.values, part.offset, part.total) for part in fragments}
    try:
        save_state_dict(chunks, storage_writer=FlatWriter(folder), process_group=group)
    except CheckpointException as error:  # no Exception to Python: it would go by everybody
        raise StorageFault(f"checkpoint {folder} cannot be written: {_causes(error)}") from error
    files = _records_of_all_ranks(folder, group)

    def commit() -> None:
        record = Commit(step, generation, tuple(files), layout, versions, state)
        with _written(folder):
            sync_folder(folder.parent)  # the name of this generation, before anything relies on it
            write_durably(folder / COMMIT, json.dumps(asdict(record), indent=1).encode())
            write_durably(run_folder / "checkpoints" / "latest", f"{folder.parent.name}/{folder.name}\n".encode())

    on_first_rank(commit, group)
    return folder


def load(found: Found, fragments: Iterable[Fragment]) -> None:
    """Fill the fragments' values from a checkpoint that any layout saved. Raises CheckpointError."""
    contents = read_contents(found.folder).state_dict_metadata
    chunks = {}
    for part in fragments:
        stored = contents.get(_key(part))
        if stored is None or stored.size[0] != part.total:  # type: ignore[union-attr]
            held = "none" if stored is None else f"{stored.size[0]} elements"  # type: ignore[union-attr]
            raise CheckpointError(
                f"checkpoint {found.folder} holds {held} of {_key(part)}, expected {part.total}: it is "
                "of another network"
            )
        chunks[_key(part)] = FlatChunk(part.values, part.offset, part.total)
    try:
        load_state_dict(chunks, storage_reader=FlatReader(found.folder))
    except CheckpointException as error:
        raise CheckpointError(f"checkpoint {found.folder} cannot be read: {_causes(error)}") from error


def newest_good(run_folder: Path) -> tuple[Found | None, list[str]]:
    """The newest checkpoint whose files are what COMMIT promises, and a line for each that was passed over and why.

    None where none was ever committed. All ranks call it; the checksums are shared out among them. Raises
    CheckpointError where there are some and none is whole, StorageFault where one cannot be read just now.
    """
    passed: list[str] = []
    for folder in on_first_rank(lambda: _candidates(run_folder)):
        try:
            return verified(folder), passed
        except CheckpointError as error:
            passed.append(str(error))
    if passed:
        raise none_is_whole(run_folder, passed)
    return None, passed


def none_is_whole(run_folder: Path, passed: Sequence[str] = ()) -> CheckpointError:
    """What to say of a run whose checkpoints are all damaged."""
    why = f" ({'; '.join(passed)})" if passed else ""
    return CheckpointError(
        f"no checkpoint of {run_folder} is whole{why}: bring the files back, or choose another run.name to start anew"
    )


def committed(run_folder: Path) -> list[Path]:
    """Committed checkpoints of a run, whole or not, newest first. Raises CheckpointError where there is none."""
    if not (run_folder / "checkpoints").is_dir():
        raise CheckpointError(f"{run_folder} has no folder checkpoints: give the folder of a run")
    return _candidates(run_folder)


def check(folder: Path) -> None:
    """Raise CheckpointError unless every file is what COMMIT promises, by size and sha256."""
    _check_files(folder, _checked_commit(folder).files)


def is_whole(folder: Path) -> bool:
    """Whether `check` has nothing to say."""
    try:
        check(folder)
    except CheckpointError:
        return False
    return True


def holds_checkpoint(run_folder: Path, since_generation: int) -> bool:
    """Whether a run has a committed checkpoint, whole or not, of this start or a later one."""
    return any(int(path.name[1:]) >= since_generation for path in _candidates(run_folder))


def verified(folder: Path) -> Found:
    """A committed checkpoint, its files checked by all ranks together. Raises CheckpointError on every rank alike."""
    commit = on_first_rank(lambda: _checked_commit(folder))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    on_every_rank(lambda: _check_files(folder, commit.files[rank::world_size]))
    return Found(folder, commit)


def find(path: Path) -> tuple[Found, list[str]]:
    """The checkpoint that a user names, verified: a step, or the newest good one of a run; and what was passed over.

    All ranks call it. Raises CheckpointError on every rank alike.
    """
    folder = on_first_rank(lambda: resolve(path))
    if on_first_rank(lambda: not (path / "checkpoints").is_dir()):
        return verified(folder), []
    found, passed = newest_good(path)
    assert found is not None  # resolve() has seen one
    return found, passed


def resolve(path: Path) -> Path:
    """The folder of a checkpoint: `path` is one, or a step folder, or a run folder (its newest COMMIT)."""
    if (path / COMMIT).is_file():
        return path
    for candidate in _candidates(path):
        return candidate
    steps = _generations(path) if _STEP.fullmatch(path.resolve().name) else []
    for generation in steps:
        if (generation / COMMIT).is_file():
            return generation
    raise CheckpointError(
        f"{path} holds no committed checkpoint, expected a run folder or a folder such as "
        "RUN/checkpoints/step-00000120: name one that has a COMMIT file"
    )


def prune(
    run_folder: Path,
    keep: int,
    step: int | None = None,
    every_steps: int | None = None,
    spared: int | None = None,
    whole_only: bool = False,
) -> list[int]:
    """After the save of `step`, remove what lies before the newest `keep` committed steps up to it (rank 0 calls).

    Multiples of `every_steps` and the step `spared` stay where they are committed. Steps beyond `step` are of an
    earlier start that went further; this one will come to them (None: all steps count). whole_only: count only those
    whose files are as promised. Returns what was removed.
    """
    found = [path for path in _candidates(run_folder) if not whole_only or is_whole(path)]
    steps = {int(path.parent.name[5:]) for path in found}
    newest = sorted(number for number in steps if step is None or number <= step)[-keep:]
    stay = {number for number in steps if number == spared or (every_steps and number % every_steps == 0)}
    removed = []
    for folder in (run_folder / "checkpoints").iterdir():
        named = _STEP.fullmatch(folder.name)
        if named and newest and int(named[1]) < newest[0] and int(named[1]) not in stay:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(int(named[1]))
    return sorted(removed)


def _checked_commit(folder: Path) -> Commit:
    """COMMIT, if it vouches for every file that the table of contents needs."""
    commit = read_commit(folder)
    missing = _needed(folder) - {record.name for record in commit.files}
    if missing:
        raise CheckpointError(f"{folder / COMMIT} does not vouch for {min(missing)}: it was changed")
    return commit


def _needed(folder: Path) -> set[str]:
    places = read_contents(folder).storage_data or {}
    return {CONTENTS, *(place.relative_path for place in places.values())}


def read_commit(folder: Path) -> Commit:
    """What COMMIT in `folder` says. Raises CheckpointError."""
    try:
        values = json.loads((folder / COMMIT).read_text())
        files = tuple(FileRecord(**record) for record in values.pop("files"))
        for record in files:
            check_file_name(record.name)
        if values["version"] != 1:
            raise ValueError(f"its version is {values['version']!r}, expected 1")
        return Commit(files=files, **values)
    except OSError as error:
        raise _unreadable(folder / COMMIT, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / COMMIT} cannot be read: {error}") from error


def _key(part: Fragment) -> str:
    return f"{part.name}/{part.kind}"


def _candidates(run_folder: Path) -> list[Path]:
    """Committed checkpoint folders of a run, newest step first, newest generation first within a step."""
    root = run_folder / "checkpoints"
    steps = [path for path in root.iterdir() if _STEP.fullmatch(path.name)] if root.is_dir() else []
    steps.sort(key=lambda path: int(path.name[5:]), reverse=True)
    return [folder for step in steps for folder in _generations(step) if (folder / COMMIT).is_file()]


def _generations(step: Path) -> list[Path]:
    folders = [path for path in step.iterdir() if _GENERATION.fullmatch(path.name)] if step.is_dir() else []
    return sorted(folders, key=lambda path: int(path.name[1:]), reverse=True)


def _records_of_all_ranks(folder: Path, group: dist.ProcessGroup | None) -> list[FileRecord]:
    """Sizes and checksums of the files, shared out among the ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()

    def own() -> list[FileRecord]:
        with _written(folder):
            return [_record(folder / name) for name in names[rank::world_size]]

    # As the table of contents has them: a network folder may not yet list what another host wrote.
    names = on_first_rank(lambda: sorted(_needed(folder)), group)
    return sorted((record for part in on_every_rank(own, group) for record in part), key=lambda record: record.name)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """What fails here is a fault of storage: said to all ranks, where an OSError would leave the others waiting."""
    try:
        yield
    except OSError as error:
        raise StorageFault(f"checkpoint {folder} cannot be written: {error}") from error


def _causes(error: CheckpointException) -> str:
    """What failed on which ranks, on one line."""
    return "; ".join(f"rank {rank}: {' '.join(str(cause[0]).split())}" for rank, cause in error.failures.items())


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.name, path.stat().st_size, digest)


def _unreadable(path: Path, error: OSError) -> CheckpointError | StorageFault:
    """A missing file makes no checkpoint; one that cannot be read just now must not cost the run its steps."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} is missing")
    return StorageFault(f"{path} cannot be read: {error}; check the storage, then start again")


def _check_files(folder: Path, records: Iterable[FileRecord]) -> None:
    for promised in records:
        path = folder / promised.name
        try:
            size = path.stat().st_size if path.is_file() else None
            found = _record(path) if size == promised.bytes else None
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != promised.bytes:
            raise CheckpointError(f"{path} has {size} bytes, expected {promised.bytes}: it is torn or was changed")
        if found != promised:
            raise CheckpointError(f"{path} has another sha256 than COMMIT says: it was changed")


def versions() -> dict[str, str]:
    """What a run's bits depend on, beside the config."""
    return {
        "dist_alexnet": version("dist-alexnet"),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "numpy": np.__version__,
        "pillow": version("pillow"),
    }
