"""Starting the W&B run of a training run: its id, what it is told, and whether it is online."""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dist_alexnet.environment import has_wandb_key, wandb_mode
from dist_alexnet.track.session import Card, Mode, brief, say
from dist_alexnet.track.wandb_run import WandbRun
from shards.storage import shown


class WandbSettings(Protocol):
    """What config's log.wandb section gives."""

    @property
    def mode(self) -> str: ...  # auto | online | offline | disabled
    @property
    def project(self) -> str: ...
    @property
    def entity(self) -> str | None: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def group(self) -> str | None: ...
    @property
    def notes(self) -> str | None: ...
    @property
    def job_type(self) -> str | None: ...
    @property
    def save_code(self) -> bool: ...
    @property
    def checkpoints(self) -> bool: ...
    @property
    def alerts(self) -> bool: ...
    @property
    def system_metrics(self) -> str: ...  # primary | nodes


def start_wandb(
    settings: WandbSettings,
    *,
    run_folder: Path,
    run_name: str,
    run_id: str | None,
    config: Callable[[], Mapping[str, Any]],
    generation: int,
    step: int,
    host: str,
    command_is_public: bool = True,
) -> WandbRun | None:
    """Start, or take up again, the W&B run `run_id` of this run folder (rank 0); None where it is disabled.

    Returns at once: W&B starts in the run's thread, which also calls `config`. The run goes on after `step`. `host`
    names this writer where nodes write, too. Files go below <run_folder>/wandb/. Online where that is asked for or,
    with mode "auto", where a key is found; otherwise offline. Never asks on the terminal and raises nothing.
    """
    mode = wandb_mode(settings.mode)
    if mode == "disabled" or run_id is None:
        return None
    if mode == "online" and not has_wandb_key():
        say("no API key (WANDB_API_KEY or ~/.netrc), so this run is logged offline")
        mode = "offline"
    online: Mode = "shared" if settings.system_metrics == "nodes" else "online"
    modes: tuple[Mode, ...] = (online, "offline") if mode == "online" else ("offline",)
    card = replace(_card(settings, run_folder, run_name, run_id, host), command_is_public=command_is_public)
    return WandbRun(
        lambda: replace(card, config=cleaned(config())),
        modes,
        run_folder,
        (generation, step),
        alerts=settings.alerts,
        save_code=settings.save_code,
        checkpoints=settings.checkpoints,
    )


def start_wandb_node(
    settings: WandbSettings, *, run_folder: Path, run_name: str, run_id: str | None, host: str
) -> WandbRun | None:
    """What a node but rank 0's sends, from one of its ranks: its system metrics, into the run that rank 0 writes.

    None where `system_metrics` is not nodes, or the run is not online here.
    """
    if settings.system_metrics != "nodes" or run_id is None:
        return None
    if wandb_mode(settings.mode) != "online" or not has_wandb_key():
        return None
    card = replace(_card(settings, run_folder, run_name, run_id, host), primary=False, command_is_public=False)
    return WandbRun(lambda: card, ("shared",), None, (0, 0), alerts=False)  # rank 0 sends them, if they are wanted


def wandb_identity(settings: WandbSettings, run_folder: Path, known: str | None) -> str | None:
    """The id of a run folder, one over all its starts (rank 0): that of <run_folder>/wandb/run-id.txt.

    The first start writes that file: with `known`, the id in the checkpoint of this run that it takes up, or a new
    one. None where W&B is disabled or the file cannot be written or read.
    """
    if wandb_mode(settings.mode) == "disabled":
        return None
    path = run_folder / "wandb" / "run-id.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size == 0:  # killed between creating and writing
            path.unlink()
        with suppress(FileExistsError), path.open("x") as file:
            file.write(f"{known or new_id()}\n")
        return path.read_text().strip()
    except (OSError, ValueError) as error:
        say(f"{path} cannot be written or read ({brief(error)}); this run is not shown there")
        return None


def new_id() -> str:
    """An id for a run of W&B."""
    return secrets.token_hex(4)


def cleaned(values: Any) -> Any:
    """Plain values as others may see them: no URL with a user, a password or a query."""
    if isinstance(values, Mapping):
        return {key: cleaned(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [cleaned(value) for value in values]
    return shown(values) if isinstance(values, str) else values


def _card(settings: WandbSettings, folder: Path, name: str, run_id: str, host: str) -> Card:
    return Card(
        run_id=run_id,
        name=name,
        folder=folder,
        project=settings.project,
        entity=settings.entity,
        tags=settings.tags,
        group=settings.group,
        notes=settings.notes,
        job_type=settings.job_type,
        label=host,
    )
