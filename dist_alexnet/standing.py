"""Where a run stands: which checkpoint a start takes up, and what that keeps beside the tensors.

The receipt says which one, what was passed over and why, and what has changed since it was written.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_alexnet.checkpoint import store
from dist_alexnet.config import Config, flattened
from dist_alexnet.engine import Engine
from dist_alexnet.environment import is_restart, launch_id
from dist_alexnet.errors import CheckpointError
from dist_alexnet.job import Job
from dist_alexnet.optim.schedules import Plateau
from dist_alexnet.run_folder import check_identity
from dist_alexnet.track.jsonl import starts
from dist_alexnet.track.meter import Meter

OF_A_RUN = {"best", "engine", "evaluation_pending", "identity", "meter", "plateau", "samples"}


@dataclass
class Standing:
    """What a run knows of itself after a step, beside its tensors and sums."""

    step: int = 0
    best: dict[str, float] | None = None  # step and top-1 of the best evaluation
    evaluation_pending: bool = False  # one was interrupted by a request to stop
    stands_on: int | None = None  # generation of the checkpoint taken up; None: the start, or another run's
    receipt: list[str] = field(default_factory=list)

    def is_best(self, step: int, top1: float) -> bool:
        """Whether this evaluation is the best so far; it is remembered then."""
        if self.best is not None and top1 <= self.best["top1"]:
            return False
        self.best = {"step": step, "top1": top1}
        return True


def layout_of(job: Job) -> dict[str, int]:
    """The layout as checkpoints and attempts name it."""
    return {**vars(job.layout), "zero_stage": job.config.parallel.zero_stage}


def resume_now(folder: Path, resume: str) -> str:
    """What `resume` means now: torchrun starts a run again with the first start's arguments, and it must go on."""
    if not is_restart():
        return resume
    started = starts(folder / "attempts.jsonl")
    of_this_launch = [number for number, start in started.items() if start.launch == launch_id()]
    if not of_this_launch:
        return resume
    saved = store.holds_checkpoint(folder, since_generation=min(of_this_launch))
    return "auto" if saved or resume == "never" else resume


def take_up(config: Config, job: Job, resume: str, engine: Engine, meter: Meter, plateau: Plateau) -> Standing:
    """Load the checkpoint that `resume` asks for (auto, never, or a path). All ranks call it.

    Raises CheckpointError, RunFolderError where it is another run's, StorageFault where it cannot be read just now.
    """
    if resume == "never":
        return Standing()
    if resume == "auto":
        found, passed_over = store.newest_good(config.run_folder)
        if found is None:
            return Standing()
    else:
        found, passed_over = store.find(Path(resume))
    commit = found.commit
    if not commit.state.keys() >= OF_A_RUN:
        raise CheckpointError(
            f"checkpoint {found.folder} does not say how its run stood: it holds weights only (then evaluate or "
            "export it), or another version wrote it"
        )
    check_identity(commit.state["identity"], job.identity, f"checkpoint {found.folder}")
    with engine.loading():
        store.load(found, engine.fragments())
    meter.restore(commit.state["meter"])
    engine.restore(commit.state["engine"])
    plateau.restore(commit.state["plateau"])
    return Standing(
        step=commit.step,
        best=commit.state["best"],
        evaluation_pending=commit.state["evaluation_pending"],
        stands_on=commit.generation if config.run_folder.resolve() in found.folder.resolve().parents else None,
        receipt=_receipt(found, passed_over, config, job),
    )


def to_keep(standing: Standing, config: Config, job: Job, engine: Engine, meter: Meter, plateau: Plateau) -> Any:
    """What the checkpoint of `standing.step` keeps beside the tensors, as plain values."""
    return {
        "samples": standing.step * config.data.batch_size,
        "meter": meter.state(),
        "engine": engine.state(),
        "plateau": plateau.state(),
        "best": standing.best,
        "evaluation_pending": standing.evaluation_pending,
        "identity": job.identity,
        "config": config.model_dump(mode="json"),
        "network": job.spec.model_dump(mode="json"),
        "classes": job.train.classes,
    }


def _receipt(found: store.Found, passed_over: list[str], config: Config, job: Job) -> list[str]:
    commit = found.commit
    lines = [f"passed over: {line}" for line in passed_over]
    lines.append(f"resumed from {found.folder}: step {commit.step}, {commit.state['samples']} samples seen")
    lines.append(f"samples to be replayed: 0; {_changes(commit, layout_of(job), config)}")
    for name, now in store.versions().items():
        if commit.versions.get(name) != now:
            lines.append(f"{name} was {commit.versions.get(name)}, is {now}: the bits may differ from here on")
    return lines


def _changes(commit: store.Commit, layout: dict[str, int], config: Config) -> str:
    """What is another than when the checkpoint was written, of layout and settings."""
    before, now = flattened(commit.state["config"]), flattened(config.model_dump(mode="json"))
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if commit.layout != layout:
        changed.insert(0, f"layout {commit.layout} -> {layout}")
    return f"changed since: {', '.join(changed)}" if changed else "layout and settings are the same"
