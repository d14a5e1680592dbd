"""A session with Weights & Biases: the only importer of wandb.

A row is logged under W&B's own step = our step. Then W&B itself can be asked where a run stands, can be cut back to a
checkpoint's step exactly, and takes no step twice. Every function here may raise what W&B raises.
"""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dist_alexnet.environment import quiet_wandb
from dist_alexnet.track.rows import Row

INIT_TIMEOUT_S = 10.0  # a service that does not answer by then is not there
FINISH_TIMEOUT_S = 45.0  # what is not sent by then stays on disk for `wandb sync`
ARRIVES_S = 600.0  # the same, where somebody waits for it and is told

Mode = Literal["online", "offline", "shared"]


@dataclass(frozen=True)
class Card:
    """What W&B is told of a run when it is opened. Files go below <folder>/wandb/."""

    run_id: str
    name: str
    folder: Path
    project: str
    entity: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None
    notes: str | None = None
    job_type: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    command_is_public: bool = True  # whether W&B may note the command line
    statistics: bool = True  # of this machine while the run is open
    must_arrive: bool = False  # whether an end before all is sent is an error
    label: str | None = None  # shared mode: name of this writer, a host
    primary: bool = True  # shared mode: the writer whose end is the run's


class Session:
    """An open run. `first_step` is the first step that it takes: what it holds already is not sent again."""

    def __init__(self, run: Any, mode: Mode) -> None:
        self._run, self._mode = run, mode
        self.first_step = 0 if mode == "shared" else int(run.starting_step)

    @property
    def is_offline(self) -> bool:
        return self._mode == "offline"

    def send(self, row: Row) -> None:
        """One step; steps must rise. A step below `first_step` is left out."""
        if row.step < self.first_step:
            return
        wandb = sys.modules["wandb"]
        pictures = {f"pictures/{name}": wandb.Image(str(path)) for name, path in row.pictures.items() if path.exists()}
        # shared mode has several writers, so W&B numbers their lines itself
        step = None if self._mode == "shared" else row.step
        self._run.log({**row.values, **pictures}, step=step, commit=True)
        self.first_step = row.step + 1

    def alert(self, title: str, text: str) -> None:
        """A message to the run's owner, by mail or chat as they chose there."""
        self._run.alert(title=title, text=text)

    def say(self, facts: Mapping[str, Any], *, summary: Mapping[str, Any] | None = None) -> None:
        """Put facts into the run's config, and into its summary."""
        self._run.config.update(dict(facts), allow_val_change=True)
        self._run.summary.update(dict(summary or {}))

    def save_code(self, packages: Path, config: Path) -> None:
        """The code of our packages and the resolved config, as one artifact; W&B keeps equal ones once."""
        artifact = sys.modules["wandb"].Artifact(f"code-{self._run.id}", type="code")
        for package in ("dist_alexnet", "shards"):
            for path in sorted((packages / package).rglob("*")):
                if path.suffix in (".py", ".yaml", ".c", ".h"):
                    artifact.add_file(str(path), name=str(path.relative_to(packages)))
        artifact.add_file(str(config), name="config.yaml")
        self._run.log_artifact(artifact)

    def refer_to_checkpoint(self, step: int, url: str) -> None:
        """Name a checkpoint by its URL, as an artifact's reference; nothing is read or copied."""
        artifact = sys.modules["wandb"].Artifact(f"checkpoint-{self._run.id}", type="model", metadata={"step": step})
        where = url if "://" in url else Path(url).absolute().as_uri()
        artifact.add_reference(where, name=f"step-{step:08d}", checksum=False)
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def finish(self, exit_code: int = 0) -> None:
        """End it: 0 is success. Waits FINISH_TIMEOUT_S at most for what is still to be sent, or ARRIVES_S."""
        self._run.finish(exit_code=exit_code)


def open_session(mode: Mode, card: Card, *, cut_to: int | None = None, new: bool = False) -> Session:
    """Open a run, or take it up again where its id is known.

    cut_to: what is there beyond this step goes (the service's "rewind"). new: an id that the service knows is refused.
    Offline, every session is a file of its own.
    """
    wandb = _imported()
    settings = settings_of(wandb, card)
    wandb.setup(settings=settings)  # the login speaks before init has its settings
    resume = None if mode == "offline" or cut_to is not None else ("never" if new else "allow")
    if mode == "offline":
        _wait_for_a_free_name(card)
    run = wandb.init(
        mode=mode,
        id=card.run_id,
        resume=resume,
        resume_from=None if cut_to is None else f"{card.run_id}?_step={cut_to}",
        project=card.project,
        entity=card.entity,
        name=card.name,
        tags=card.tags or None,
        group=card.group,
        notes=card.notes,
        job_type=card.job_type,
        dir=str(card.folder),
        config=dict(card.config),
        allow_val_change=True,
        settings=settings,
    )
    run.define_metric("step")
    run.define_metric("samples")
    run.define_metric("*", step_metric="step")
    return Session(run, mode)


def forget() -> None:
    """End W&B's service process: after a failed start it holds the run's id and would call the next a second user."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        # SystemExit, too: it ends with the exit code of its service where that was killed
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown(exit_code=1)


def say(text: str) -> None:
    """One line about W&B for the person at the terminal."""
    print(f"W&B: {text}", file=sys.stderr, flush=True)


def brief(error: Exception) -> str:
    """An error as part of a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _imported() -> Any:
    quiet_wandb()
    import wandb  # here, so that a disabled run does not pay for it

    return wandb


def settings_of(wandb: Any, card: Card) -> Any:
    """W&B's settings for a run: quiet, bounded in time, and without what could hold a secret."""
    wishes = {
        "silent": True,
        "console": "off",
        "disable_git": True,  # a remote's URL may hold a token
        "disable_code": True,
        "x_save_requirements": False,
        "x_disable_meta": not card.command_is_public,
        "x_disable_stats": not card.statistics,
        "init_timeout": INIT_TIMEOUT_S,
        "login_timeout": INIT_TIMEOUT_S,
        "finish_timeout": ARRIVES_S if card.must_arrive else FINISH_TIMEOUT_S,
        "finish_timeout_raises": card.must_arrive,
        "x_label": card.label,
        "x_primary": card.primary,
        "x_update_finish_state": card.primary,
    }
    return wandb.Settings(**{key: value for key, value in wishes.items() if key in wandb.Settings.model_fields})


def _wait_for_a_free_name(card: Card) -> None:
    """W&B names an offline folder by the second: two in one second would be one."""
    while any((card.folder / "wandb").glob(f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-{card.run_id}")):
        time.sleep(0.05)
