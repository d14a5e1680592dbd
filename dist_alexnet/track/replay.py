"""A W&B run made anew from metrics.jsonl: what counts of all starts of a training run, each step once."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.config import Config, load_config
from dist_alexnet.environment import has_wandb_key, wandb_mode
from dist_alexnet.errors import RunFolderError
from dist_alexnet.track import session as wandb
from dist_alexnet.track.jsonl import Start, Tail, counts, last_steps, starts
from dist_alexnet.track.rows import Row, Rows, pictures_of
from dist_alexnet.track.session import Card, Mode, Session
from dist_alexnet.track.wandb_start import cleaned, new_id
from shards.errors import InputError


@dataclass(frozen=True)
class Replayed:
    """What was written."""

    run_id: str
    mode: Mode
    steps: int  # rows
    pictures: int
    restarts: int


def replay(
    folder: Path,
    *,
    mode: str = "auto",
    project: str | None = None,
    entity: str | None = None,
    run_id: str | None = None,
) -> Replayed:
    """Write a new W&B run of the run folder: its lines that count, its config, its pictures, its restarts.

    A run that is still being written is taken as it is now. mode: auto, online or offline, as log.wandb.mode. project,
    entity: as in the run's config without them. run_id: of the new run, drawn without it. Nothing is written over:
    InputError where the id is taken, or W&B does not take the run; RunFolderError where there is no run.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise RunFolderError(f"{folder} has no metrics.jsonl: give the folder of a run, <run.dir>/<run.name>")
    if next(_rows(folder, starts(folder / "attempts.jsonl")), None) is None:
        raise RunFolderError(f"{folder / 'metrics.jsonl'} holds no line of a step that counts: nothing to send")
    config = load_config(folder / "config.yaml")
    where = _mode(mode)
    card = _card(folder, config, project, entity, run_id or new_id())
    if not re.fullmatch(r"[\w-]+", card.run_id):
        raise InputError(f"the id is {card.run_id!r}, expected letters, digits, - and _: give another, or none")
    if _is_taken(folder, card.run_id):
        raise InputError(f"the id {card.run_id!r} is taken by a run in {folder / 'wandb'}: give another, or none")
    try:
        session = wandb.open_session(where, card, new=True)
        replayed = _sent(session, folder, card, where)
        session.finish()
    except Exception as error:  # W&B's errors have no common base
        wandb.forget()
        raise InputError(f"W&B did not take the run ({wandb.brief(error)}); nothing in {folder} has changed") from error
    return replayed


def _sent(session: Session, folder: Path, card: Card, mode: Mode) -> Replayed:
    started, pictures = starts(folder / "attempts.jsonl"), pictures_of(folder)
    steps = shown = 0
    for row in _rows(folder, started):
        row.pictures = pictures.get(row.step, {})
        session.send(row)
        steps, shown = steps + 1, shown + len(row.pictures)
    generations = [{"generation": number, "step": one.step} for number, one in sorted(started.items())]
    restarts = max(0, len(started) - 1)
    session.say({"starts": generations}, summary={"restarts": restarts})
    return Replayed(card.run_id, mode, steps, shown, restarts)


def _rows(folder: Path, started: dict[int, Start]) -> Iterator[Row]:
    """What counts of metrics.jsonl, a step at a time."""
    last_step, tail, rows = last_steps(started), Tail(folder / "metrics.jsonl"), Rows()
    while (records := tail.new()) is not None:
        for record in records:
            if not isinstance(record.get("step"), int) or not counts(record, last_step):
                continue
            if (row := rows.add(record)) is not None:
                yield row
    if (last := rows.rest()) is not None:
        yield last


def _mode(asked: str) -> Mode:
    mode = wandb_mode(asked)
    if mode == "online" and not has_wandb_key():
        raise InputError("there is no API key of W&B: set WANDB_API_KEY, run `wandb login`, or give --mode offline")
    if mode not in ("online", "offline"):
        raise InputError(f"the mode is {mode!r}, expected online or offline: give --mode, or unset WANDB_MODE")
    return mode


def _card(folder: Path, config: Config, project: str | None, entity: str | None, run_id: str) -> Card:
    settings = config.log.wandb
    return Card(
        run_id=run_id,
        name=config.run.name,
        folder=folder,
        project=project or settings.project,
        entity=entity or settings.entity,
        tags=settings.tags,
        group=settings.group,
        notes=settings.notes,
        job_type=settings.job_type,
        config=cleaned({**config.model_dump(mode="json"), **_record(folder)}),
        command_is_public=False,  # it is this command's, not the run's
        statistics=False,
        must_arrive=True,
    )


def _record(folder: Path) -> dict[str, Any]:
    """Layout and versions, of the record of the newest start that has one."""
    for path in sorted((folder / "generations").glob("g*.json"), reverse=True):
        try:
            record = json.loads(path.read_text())
        except ValueError:
            continue
        return {key: record.get(key) for key in ("layout", "versions")}
    return {}


def _is_taken(folder: Path, run_id: str) -> bool:
    own = folder / "wandb" / "run-id.txt"
    return any((folder / "wandb").glob(f"*run-*-{run_id}")) or (own.exists() and own.read_text().strip() == run_id)
