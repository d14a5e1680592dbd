"""Where a run stands: which checkpoint a start takes up, and what that keeps beside the tensors.

The receipt says which one, what was passed over and why, and what has changed since it was written.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.commit import Commit, Found
from dist_alexnet.checkpoint.finding import committed_in, generation_of, root_of, step_of
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.config import Config, flattened
from dist_alexnet.engine import Engine
from dist_alexnet.environment import is_restart, launch_id
from dist_alexnet.errors import CheckpointError
from dist_alexnet.finetune import IN_STATE, begin_with
from dist_alexnet.guard.divergence import DivergenceGuard, Fault
from dist_alexnet.job import Job
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.optim.schedules import Plateau
from dist_alexnet.parallel.agree import on_first_rank
from dist_alexnet.run_folder import check_identity
from dist_alexnet.track.jsonl import last_steps, starts
from dist_alexnet.track.meter import Meter
from shards.index import ShardIndex

OF_A_RUN = {"best", "engine", "evaluation_pending", "identity", "meter", "plateau", "samples"}


@dataclass
class Standing:
    """What a run knows of itself after a step, beside its tensors and sums."""

    step: int = 0
    best: dict[str, float] | None = None  # step and top-1 of the best evaluation
    evaluation_pending: bool = False  # one was interrupted by a request to stop
    stands_on: int | None = None  # generation of the checkpoint taken up; None: the start, or another run's
    taken_up: str | None = None  # URL of that checkpoint
    wandb_id: str | None = None  # of this run; another run's checkpoint does not give its own on
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


def with_one_source(job: Job) -> Job:
    """The job with rank 0's choice of the checkpoint that the run begins with, checked while nothing is claimed yet.

    All ranks call it. Raises CheckpointError, or StorageFault.
    """
    source = on_first_rank(lambda: job.source)
    if source is not None and source.commit is not None:
        store.verified(source.folder)
    return replace(job, source=source)


@dataclass(frozen=True)
class Kept:
    """What of a run, beside its standing, a checkpoint keeps."""

    engine: Engine
    meter: Meter
    plateau: Plateau
    guard: DivergenceGuard


def take_up(config: Config, job: Job, resume: str, kept: Kept) -> Standing:
    """Load the checkpoint that `resume` asks for (auto, never, or a path). All ranks call it.

    Raises CheckpointError, RunFolderError where it is another run's, StorageFault where it cannot be read just now.
    """
    if resume == "never":
        return Standing(receipt=_begun(job, kept))
    if resume == "auto":
        found, passed_over = store.newest_good(config.run_folder)
        if found is None:
            return Standing(receipt=_begun(job, kept))
    else:
        found, passed_over = store.find(resume)
    return _loaded(found, passed_over, config, job, kept)


def roll_back(config: Config, job: Job, resume: str, kept: Kept, fault: Fault) -> Standing:
    """Back to the newest good checkpoint that this run stands on, and past what it has seen since then.

    Where it has none of its own: to the one that it began with (a path in `resume`), or to the start. All ranks call
    it, between steps, when no save is under way. Raises the errors of `take_up`.
    """
    found, passed_over = _newest_stood_on(config.run_folder)
    if found is not None:
        standing = _loaded(found, passed_over, config, job, kept)
    elif resume not in ("auto", "never"):
        standing = take_up(config, job, resume, kept)
    else:
        fresh = ColumnNetwork(job.network, kept.engine.mesh, config.run.seed)
        kept.engine.start_over(fresh.values_of)
        kept.meter.restore({})
        kept.plateau.restore(Plateau(config.schedule).state())
        kept.guard.restore(None)
        standing = Standing(receipt=["back to the start: there is no checkpoint yet", *_begun(job, kept)])
    standing.receipt.append(str(kept.guard.rolled_back(fault, standing.step, config.data.batch_size)))
    return standing


def _begun(job: Job, kept: Kept) -> list[str]:
    """What a run begins with beside its own initial values, loaded; what to say about it."""
    if job.source is None:
        return []
    return begin_with(job.source, job.config.finetune.new_layers, job.network, kept.engine)


def _newest_stood_on(run_folder: Path) -> tuple[Found | None, list[str]]:
    """As store.newest_good, without what an earlier start has left further on, and nobody stands on."""

    def stood_on() -> list[Place]:
        last_step = last_steps(starts(run_folder / "attempts.jsonl"))
        folders = committed_in(root_of(run_folder))
        return [folder for folder in folders if step_of(folder) <= last_step.get(generation_of(folder), -1)]

    passed: list[str] = []
    for folder in on_first_rank(stood_on):
        try:
            return store.verified(folder), passed
        except CheckpointError as error:
            passed.append(str(error))
    if passed:
        raise store.none_is_whole(root_of(run_folder), passed)
    return None, passed


def _loaded(found: Found, passed_over: list[str], config: Config, job: Job, kept: Kept) -> Standing:
    commit = found.commit
    if not commit.state.keys() >= OF_A_RUN:
        raise CheckpointError(
            f"checkpoint {found.folder} does not say how its run stood: it holds weights only (then evaluate or "
            "export it, or begin a new run with it by finetune.from), or another version wrote it"
        )
    check_identity(commit.state["identity"], job.identity, f"checkpoint {found.folder}")
    with kept.engine.loading():
        store.load(found, kept.engine.fragments())
    kept.meter.restore(commit.state["meter"])
    kept.engine.restore(commit.state["engine"])
    kept.plateau.restore(commit.state["plateau"])
    kept.guard.restore(commit.state.get("divergence"))
    own = root_of(config.run_folder).holds(found.folder)
    return Standing(
        step=commit.step,
        best=commit.state["best"],
        evaluation_pending=commit.state["evaluation_pending"],
        taken_up=found.folder.url,
        stands_on=commit.generation if own else None,
        wandb_id=commit.state.get("wandb_id") if own else None,
        receipt=[*_receipt(found, passed_over, config, job), *map(str, kept.guard.skipped)],
    )


def to_keep(standing: Standing, config: Config, job: Job, kept: Kept) -> Any:
    """What the checkpoint of `standing.step` keeps beside the tensors, as plain values."""
    return {
        "samples": standing.step * config.data.batch_size,
        "meter": kept.meter.state(),
        "engine": kept.engine.state(),
        "plateau": kept.plateau.state(),
        "divergence": kept.guard.state(),
        "best": standing.best,
        "evaluation_pending": standing.evaluation_pending,
        "identity": job.identity,
        "config": config.model_dump(mode="json"),
        "network": job.spec.model_dump(mode="json"),
        "classes": job.train.classes,
        "class_words": _words(job.train),
        "wandb_id": standing.wandb_id,
        **({} if job.source is None else {IN_STATE: job.source.record()}),
    }


def _receipt(found: Found, passed_over: list[str], config: Config, job: Job) -> list[str]:
    commit = found.commit
    lines = [f"passed over: {line}" for line in passed_over]
    lines.append(f"resumed from {found.folder}: step {commit.step}, {commit.state['samples']} samples seen")
    lines.append(f"samples to be replayed: 0; {_changes(commit, layout_of(job), config)}")
    for name, now in store.versions().items():
        if commit.versions.get(name) != now:
            lines.append(f"{name} was {commit.versions.get(name)}, is {now}: the bits may differ from here on")
    return lines


def _changes(commit: Commit, layout: dict[str, int], config: Config) -> str:
    """What is another than when the checkpoint was written, of layout and settings."""
    before, now = flattened(commit.state["config"]), flattened(config.model_dump(mode="json"))
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if commit.layout != layout:
        changed.insert(0, f"layout {commit.layout} -> {layout}")
    return f"changed since: {', '.join(changed)}" if changed else "layout and settings are the same"


def _words(index: ShardIndex) -> list[str] | None:
    """What the classes are in words, where the makers of the set said it: wnids tell a reader little."""
    words = [info.get("words") for info in index.class_info or ()]
    return [str(word) for word in words] if words and all(words) else None
