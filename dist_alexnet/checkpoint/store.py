"""Where checkpoints lie, and when one counts.

    <root>/step-00000120/g0002/   a file of every rank, contents.json, and at last COMMIT
    <root>/latest                 a hint for people, never read

The root is the folder `checkpoints` of a run folder, or checkpoint.url, on a disk or an object store. g0002 is the
generation: the number of the start of the run that wrote it, so two starts never write the same name. COMMIT (files,
bytes, sha256, step, state, layout, versions) is written after every rank has written everything; a folder without it
does not exist for anybody who reads. Neither a rename nor a lock is needed, only that one file appears whole.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from dist_alexnet.checkpoint.commit import COMMIT, Commit, Found, check_files, checked_commit
from dist_alexnet.checkpoint.contents import read_contents
from dist_alexnet.checkpoint.finding import (
    LATEST,
    Run,
    committed_in,
    folder_of,
    generation_of,
    names_one,
    resolve,
    root_named,
    root_of,
)
from dist_alexnet.checkpoint.flat import FlatChunk, FlatReader, FlatWriter
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.engine import Fragment
from dist_alexnet.errors import CheckpointError
from dist_alexnet.parallel.agree import on_every_rank, on_first_rank
from shards import storage
from shards.errors import InputError, StorageFault


def save(
    run: Run,
    fragments: Iterable[Fragment],
    *,
    step: int,
    generation: int,
    layout: dict[str, Any],
    versions: dict[str, str],
    state: dict[str, Any],
    group: dist.ProcessGroup | None = None,
    moved: Callable[[], None] = lambda: None,
) -> Place:
    """Write one checkpoint with all ranks and commit it. Returns its folder. Raises StorageFault on every rank alike.

    group: of all ranks, with which they agree where another thread writes; fragments may be of any device. moved:
    called after each tensor. What a failed save has written is taken away, as far as that is possible: a disk that is
    full has better uses for it.
    """
    root = root_of(run)
    folder = folder_of(root, step, generation)
    on_first_rank(lambda: _check_is_new(folder), group)
    chunks = {_key(part): FlatChunk(part.values, part.offset, part.total) for part in fragments}
    try:
        writer = _write_all(FlatWriter(folder, moved), chunks, group)
        files = on_every_rank(lambda: writer.written, group)
        records = tuple(sorted((record for part in files for record in part), key=lambda record: record.name))
        commit = Commit(step, generation, records, layout, versions, state)
        # Not those that this rank wrote, so that a shared disk is asked on another host.
        share = slice((dist.get_rank() + 1) % dist.get_world_size(), None, dist.get_world_size())
        on_every_rank(lambda: _check_written(folder, commit, share), group)
        on_first_rank(lambda: _commit(folder, commit), group)
    except StorageFault:
        if dist.get_rank() == 0:
            with suppress(StorageFault, InputError):
                folder.clear(first=COMMIT)
                folder.parent.drop()
        raise
    if dist.get_rank() == 0:
        with suppress(StorageFault, InputError):  # no save fails for want of a hint
            storage.write_atomic((root / LATEST).url, f"{folder.parent.name}/{folder.name}\n".encode())
    return folder


def _check_is_new(folder: Place) -> None:
    with _written(folder):
        if (folder / COMMIT).exists():
            raise StorageFault(f"checkpoint {folder} is committed already: it is not written again")


def _write_all(writer: FlatWriter, chunks: dict[str, FlatChunk], group: dist.ProcessGroup | None) -> FlatWriter:
    try:
        save_state_dict(chunks, storage_writer=writer, process_group=group)
    except CheckpointException as error:  # no Exception to Python: it would go by everybody
        raise StorageFault(f"checkpoint {writer.folder} cannot be written: {_causes(error)}") from error
    return writer


def _check_written(folder: Place, commit: Commit, share: slice) -> None:
    """What lies there now is what was meant: read again from a disk; an object store has checked what it was sent."""
    with _written(folder):
        check_files(folder, commit.files[share], by_size_only=folder.path is None)


def _commit(folder: Place, commit: Commit) -> None:
    with _written(folder):
        storage.write_atomic((folder / COMMIT).url, commit.to_json())


@contextmanager
def _written(folder: Place) -> Iterator[None]:
    """What fails here is a fault of storage, whatever it is elsewhere: training can go on without this checkpoint."""
    try:
        yield
    except (OSError, InputError) as error:
        raise StorageFault(f"checkpoint {folder} cannot be written: {error}") from error


def load(found: Found, fragments: Iterable[Fragment]) -> None:
    """Fill the fragments' values from a checkpoint that any layout saved. Raises CheckpointError, or StorageFault."""
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
        silent = any(isinstance(cause[0], StorageFault) for cause in error.failures.values())
        kind = StorageFault if silent else CheckpointError
        raise kind(f"checkpoint {found.folder} cannot be read: {_causes(error)}") from error


def newest_good(run: Run) -> tuple[Found | None, list[str]]:
    """The newest checkpoint whose files are what COMMIT promises, and a line for each that was passed over and why.

    None where none was ever committed. All ranks call it; the checksums are shared out among them. Raises
    CheckpointError where there are some and none is whole, StorageFault where one cannot be read just now, or where
    the root cannot be listed.
    """
    passed: list[str] = []
    for folder in on_first_rank(lambda: committed_in(root_of(run))):
        try:
            return verified(folder), passed
        except CheckpointError as error:
            passed.append(str(error))
    if passed:
        raise none_is_whole(root_of(run), passed)
    return None, passed


def none_is_whole(root: Place, passed: Sequence[str] = ()) -> CheckpointError:
    """What to say of a run whose checkpoints are all damaged."""
    why = f" ({'; '.join(passed)})" if passed else ""
    return CheckpointError(
        f"no checkpoint of {root} is whole{why}: bring the files back, or choose another run.name to start anew"
    )


def check(folder: Place) -> None:
    """Raise CheckpointError unless every file is what COMMIT promises, by size and sha256; or StorageFault."""
    check_files(folder, checked_commit(folder).files)


def is_whole(folder: Place) -> bool:
    """Whether `check` has nothing to say. Raises StorageFault where it cannot be known just now."""
    try:
        check(folder)
    except CheckpointError:
        return False
    return True


def holds_checkpoint(run: Run, since_generation: int) -> bool:
    """Whether a run has a committed checkpoint, whole or not, of this start or a later one."""
    return any(generation_of(folder) >= since_generation for folder in committed_in(root_of(run)))


def verified(folder: Place) -> Found:
    """A committed checkpoint, its files checked by all ranks together. Raises CheckpointError on every rank alike."""
    commit = on_first_rank(lambda: checked_commit(folder))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    on_every_rank(lambda: check_files(folder, commit.files[rank::world_size]))
    return Found(folder, commit)


def find(given: str | Path | Place) -> tuple[Found, list[str]]:
    """The checkpoint that a user names, verified, and what was passed over.

    `given`: the path or URL of a checkpoint, of a step, or of a run (its newest good one). All ranks call it. Raises
    CheckpointError on every rank alike, or StorageFault.
    """
    if on_first_rank(lambda: names_one(given)):
        return verified(on_first_rank(lambda: resolve(given))), []
    found, passed = newest_good(on_first_rank(lambda: root_named(given)))
    assert found is not None  # root_named() has seen one
    return found, passed


def _key(part: Fragment) -> str:
    return f"{part.name}/{part.kind}"


def _causes(error: CheckpointException) -> str:
    """What failed on which ranks, on one line."""
    return "; ".join(f"rank {rank}: {' '.join(str(cause[0]).split())}" for rank, cause in error.failures.items())


def versions() -> dict[str, str]:
    """What a run's bits depend on, beside the config."""
    return {
        "dist_alexnet": version("dist-alexnet"),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "numpy": np.__version__,
        "pillow": version("pillow"),
    }
