"""What a run's folder says by itself: no network, no picture."""

import datetime
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.attempts import Attempt, attempts
from dist_alexnet.checkpoint.finding import root_of
from dist_alexnet.config import Config, load_config
from dist_alexnet.errors import RunFolderError
from dist_alexnet.track.jsonl import live_lines, starts
from shards.storage import shown

MOST_ROWS = 20  # of a table of what went wrong
NOT_WRITTEN = "not written down"
LEDGER = {"step", "key", "url", "cause"}  # what a line of it has
TOLD = ("dist-alexnet", "torch", "deepspeed", "python")  # of many versions; the record of the start has all


@dataclass(frozen=True)
class Facts:
    """Of one run, from its files. Only lines that count are in `lines` and `ledger`."""

    folder: Path
    config: Config
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    starts: Sequence[Attempt]
    ledger: Sequence[Mapping[str, Any]]
    identity: Mapping[str, Any]
    record: Mapping[str, Any]  # of the newest start

    @property
    def restarts(self) -> list[int]:
        """The steps at which later starts took the run up, of those that it stands on."""
        stood_on = {line["generation"] for line in self.lines if "generation" in line}
        return [one.first_step for one in self.starts[1:] if one.generation in stood_on]

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if "val/top1" in line]


def facts_of(run_folder: Path) -> Facts:
    """Read them. Raises RunFolderError where it is no run's folder, or ConfigError."""
    if not (run_folder / "config.yaml").is_file():
        raise RunFolderError(f"{run_folder} holds no config.yaml: give the folder of a run that has been started")
    started = starts(run_folder / "attempts.jsonl")
    newest = max(started, default=0)
    return Facts(
        folder=run_folder,
        config=load_config(run_folder / "config.yaml"),
        lines=[line for line in live_lines(run_folder / "metrics.jsonl", started) if _is_of_a_step(line)],
        starts=attempts(run_folder),
        ledger=[line for line in live_lines(run_folder / "ledger.jsonl", started) if line.keys() >= LEDGER],
        identity=_json(run_folder / "identity.json"),
        record=_json(run_folder / "generations" / f"g{newest:04d}.json"),
    )


def state_of(facts: Facts) -> str:
    """In a word or two, how the run stands."""
    newest = facts.starts[-1]
    if newest.code is None:
        return newest.cause
    return {0: "done", 75: "stopped on request"}.get(newest.code, "ended with an error")


def header(facts: Facts) -> list[tuple[str, str]]:
    """The rows of the table that says which run it is."""
    config, newest, count = facts.config, facts.starts[-1], len(facts.starts)
    last = facts.lines[-1] if facts.lines else {}
    step, samples, epoch = (last.get(key, 0) for key in ("step", "samples", "epoch"))
    versions = facts.record.get("versions") or {}
    told = [f"{name} {versions[name]}" for name in TOLD if versions.get(name)]
    axes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in newest.layout.items())
    ranks, rule = _ranks(newest), config.optimizer
    lasted_s = [one.ended_s - one.began_s for one in facts.starts if one.ended_s is not None]
    return [
        ("run folder", str(facts.folder)),
        ("so far", f"{step:,} steps, {samples:,} pictures, {epoch:.2f} epochs"),
        ("network", f"{config.network.name}, width {config.network.width:g}, {config.network.num_classes} classes"),
        ("batch, seed", f"{config.data.batch_size}, {config.run.seed}"),
        ("optimizer", f"{rule.name}, learning rate {rule.lr:g}; schedule {config.schedule.name}"),
        ("layout", f"{ranks} {'rank' if ranks == 1 else 'ranks'}" + (f": {axes}" if axes else "")),
        ("hosts", ", ".join(newest.hosts)),
        ("training set", _set(config.data.train)),
        ("its digest", str(facts.identity.get("data.digest", NOT_WRITTEN))),
        ("validation set", _set(config.data.val)),
        ("decoder", str(facts.identity.get("decoder", NOT_WRITTEN))),
        ("versions", ", ".join(told) or NOT_WRITTEN),
        ("first start", clock(facts.starts[0].began_s)),
        ("time", f"{spent(sum(lasted_s))} in {len(lasted_s)} of {count} starts; the others have written no end")
        if len(lasted_s) < count
        else ("time", f"{spent(sum(lasted_s))} in {count} {'start' if count == 1 else 'starts'}"),
    ]


def attempt_rows(facts: Facts) -> list[list[str]]:
    """The rows of the table of starts: number, end, steps, gained, lost, when, how long, ranks."""
    rows = []
    for one in facts.starts:
        lasted = "" if one.ended_s is None else spent(one.ended_s - one.began_s)
        steps = (f"{one.first_step:,} to {one.reached_step:,}", f"{one.gained:,}", f"{one.lost:,}")
        rows.append([str(one.generation), one.cause, *steps, clock(one.began_s), lasted, str(_ranks(one))])
    return rows


def bad_samples(facts: Facts) -> tuple[int, list[tuple[str, int]], list[Mapping[str, Any]]]:
    """(how many, the shards with the most, the first of them) of pictures that did not decode, each picture once.

    Every epoch and every evaluation writes its own line of it.
    """
    once: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in facts.ledger:
        once.setdefault((str(line["url"]), str(line["key"])), line)
    shards = Counter(url for url, _ in once)
    return len(once), shards.most_common(5), list(once.values())[:MOST_ROWS]


def places(facts: Facts) -> list[tuple[str, str]]:
    """Where to look: what it is, and the path or command."""
    folder = facts.folder
    found = [
        ("every number, a line a step", folder / "metrics.jsonl"),
        ("each start and how it ended", folder / "attempts.jsonl"),
        ("pictures that did not decode", folder / "ledger.jsonl"),
        ("tracebacks and first causes", folder / "logs"),
        ("pictures", folder / "pictures"),
        ("W&B's files", folder / "wandb"),
    ]
    rows = [(what, str(path)) for what, path in found if path.exists()]
    rows.insert(0, ("checkpoints", str(root_of(folder))))
    here, val = shlex.quote(str(folder)), shlex.quote(facts.config.data.val or "VAL.index.json")
    return [
        *rows,
        ("exact figures of a checkpoint", f"dist-alexnet evaluate {here} --shards {val}"),
        ("how the starts went", f"dist-alexnet attempts {here}"),
    ]


def clock(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M")


def spent(seconds: float) -> str:
    """A time for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else (f"{minutes} min {rest} s" if minutes else f"{rest} s")


def _ranks(start: Attempt) -> int:
    return math.prod(start.layout.get(axis, 1) for axis in ("data", "replicas", "columns"))


def _set(url: str | None) -> str:
    return "none" if url is None else shown(url)


def _is_of_a_step(line: Mapping[str, Any]) -> bool:
    """Whether it is numbers, of a step: what else may stand in a file that was damaged cannot be drawn."""
    return isinstance(line.get("step"), int) and all(isinstance(value, (int, float)) for value in line.values())


def _json(path: Path) -> Mapping[str, Any]:
    """A file of plain values; nothing where it is not there, or not whole."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
