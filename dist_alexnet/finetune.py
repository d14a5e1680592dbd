"""What a run begins with where that is the weights of another: which checkpoint, whether it fits, and its loading.

The checkpoint is chosen when the run begins, and written down in its folder and in its own checkpoints. From then on
the other run may go on, be pruned or be moved: this one stays what it is.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.checkpoint.commit import Commit, read_commit
from dist_alexnet.checkpoint.contents import read_contents
from dist_alexnet.checkpoint.finding import committed_in, resolve, root_of
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.checkpoint.store import load, verified
from dist_alexnet.config import Config
from dist_alexnet.engine import Engine
from dist_alexnet.errors import CheckpointError, ConfigError, RunFolderError
from dist_alexnet.network.sizes import Network
from shards.storage import create

RECORD = "finetune.json"  # in the run folder
IN_STATE = "finetune"  # in the state of the run's checkpoints


@dataclass(frozen=True)
class Source:
    """The checkpoint that a run begins with."""

    asked: str  # as finetune.from says it
    url: str  # of the checkpoint itself
    step: int
    digest: str  # of its COMMIT
    commit: Commit | None = None  # None where the run has begun with it already: it need not be there any more

    @property
    def folder(self) -> Place:
        return Place(self.url)

    def record(self) -> dict[str, Any]:
        """What is written down of it, as plain values."""
        return {"from": self.asked, "checkpoint": self.url, "step": self.step, "digest": self.digest}


def source_of(config: Config, resume: str = "auto") -> Source | None:
    """What the run begins with: as it is written down where the run has begun, else what finetune.from names now.

    resume: as `train` has it; a checkpoint that it names knows, too. Of a checkpoint only COMMIT is read. Raises
    CheckpointError where there is none, RunFolderError, StorageFault.
    """
    asked = config.finetune.source
    if asked is None:
        return None
    known = _written_down(config, resume)
    if known is not None and known.asked == asked:
        return known
    try:
        folder = resolve(asked).absolute()
        commit = read_commit(folder)
    except CheckpointError as error:
        began = "" if known is None else f"; this run began with {known.asked}, so set finetune.from back to it"
        raise CheckpointError(f"finetune.from: {error}{began}") from error
    return Source(asked, folder.url, commit.step, commit.digest, commit)


def write_down(source: Source | None, run_folder: Path) -> None:
    """Keep in the run's folder what it begins with. What is there stays (rank 0)."""
    if source is not None:
        create(str(run_folder / RECORD), json.dumps(source.record(), indent=1).encode())


def _written_down(config: Config, resume: str) -> Source | None:
    run_folder = config.run_folder
    try:
        if (run_folder / RECORD).exists():
            record = json.loads((run_folder / RECORD).read_text())
        else:
            record = _in_checkpoints(config, resume)
        if record is None:
            return None
        return Source(record["from"], record["checkpoint"], int(record["step"]), record["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{run_folder / RECORD} is not what a run wrote: {error}") from error


def _in_checkpoints(config: Config, resume: str) -> dict[str, Any] | None:
    """With checkpoint.url a run may go on from another folder, which has no record yet."""
    if resume == "never":
        return None
    if resume != "auto":
        return read_commit(resolve(resume)).state.get(IN_STATE)
    url = config.checkpoint.url
    for folder in committed_in(root_of(config.run_folder) if url is None else Place.at(url)):
        with suppress(CheckpointError):  # a damaged one is passed over when the run is taken up, too
            return read_commit(folder).state.get(IN_STATE)
    return None


def check_fits(new_layers: Collection[str], network: Network, theirs: Network, where: str) -> None:
    """Raise unless each layer of `network` that is not to begin anew is in `theirs` with the same shapes.

    ConfigError where new_layers names what is no layer, CheckpointError that names all layers that do not fit.
    """
    shapes = _shapes(network)
    layers = list(dict.fromkeys(map(_layer, shapes)))
    for name in new_layers:
        if name not in layers:
            raise ConfigError(f"finetune.new_layers names layer {name}, expected one of {', '.join(layers)}")
    found = _shapes(theirs)
    misfits: dict[str, str] = {}
    for name, shape in shapes.items():
        if _layer(name) not in new_layers and found.get(name) != shape:
            held = f"is {_written(found[name])}" if name in found else "is missing"
            misfits.setdefault(_layer(name), f"{name} {held}, expected {_written(shape)}")
    if misfits:
        first, *others = misfits.values()
        also = f" (nor does {', '.join(list(misfits)[1:])})" if others else ""
        raise CheckpointError(
            f"checkpoint {where} (finetune.from) does not fit: {first}{also}; name {', '.join(misfits)} in "
            "finetune.new_layers to begin them anew, or begin with another checkpoint"
        )


def begin_with(source: Source, new_layers: Collection[str], network: Network, engine: Engine) -> list[str]:
    """Load the weights and running statistics of the layers that are not new; returns what to say about it.

    All ranks call it, with an engine that is as it was made. Raises CheckpointError, or StorageFault.
    """
    try:
        found = verified(source.folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"the run begins with {source.folder}, which cannot be taken: {error}; bring it back, or choose another "
            "run.name"
        ) from error
    if found.commit.digest != source.digest:
        raise CheckpointError(
            f"the run begins with {source.folder}, which is another checkpoint by now: bring that one back, or choose "
            "another run.name"
        )
    with engine.loading():
        parts = (part for part in engine.fragments() if part.kind in ("weight", "statistic"))
        load(found, [part for part in parts if _layer(part.name) not in new_layers])
    ours = list(dict.fromkeys(map(_layer, _shapes(network))))
    theirs = dict.fromkeys(_layer(name.rpartition("/")[0]) for name in read_contents(found.folder).state_dict_metadata)
    return [
        f"begins with {source.folder}, step {source.step}: {_listed(name for name in ours if name not in new_layers)}",
        f"begins anew: {_listed(name for name in ours if name in new_layers)}; left there: "
        f"{_listed(name for name in theirs if name not in ours)}",
    ]


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in (*network.tensors, *network.statistics)}


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _written(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
