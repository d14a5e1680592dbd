"""Two runs beside each other: the first step at which samples, loss or state differ, and what differs in settings.

Only lines that count are compared (track/jsonl.py), so a run that was killed many times compares like any other.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dist_alexnet.config import Config, flattened, load_config
from dist_alexnet.errors import RunFolderError
from dist_alexnet.track.jsonl import Start, live_lines, read_lines, starts
from dist_alexnet.track.table import print_table

METRICS = ("train/loss", "val/loss")
_WORD = 1 << 64


@dataclass(frozen=True)
class Difference:
    """The first step at which two runs differ in something, and what each has there."""

    step: int
    a: Any
    b: Any


@dataclass
class Comparison:
    """What two runs have in common and where they part."""

    steps: dict[str, int] = field(default_factory=dict)  # keys, train/loss, ...: at how many steps both have it
    first: dict[str, Difference] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)  # of metrics: the largest relative difference
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # of config, identity and record
    not_compared: dict[str, str] = field(default_factory=dict)  # and why

    @property
    def equal(self) -> bool:
        """Whether samples, losses and state are the same at every step that both have."""
        return not self.first

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"equal": self.equal, **asdict(self)}


@dataclass(frozen=True)
class Sighting:
    """What one rank saw in a step that counts. `column`: of the rank; others than 0 load what column 0 does."""

    step: int
    column: int
    positions: list[int]
    keys: list[str]


def sightings(run_folder: Path) -> Iterator[Sighting]:
    """Every line of keys that counts, of all ranks. Columns that share the decoding all count as column 0.

    Raises RunFolderError where the folder holds keys of a start that it does not know.
    """
    started = starts(run_folder / "attempts.jsonl")
    configs: dict[int, Config] = {}
    for path in sorted((run_folder / "keys").glob("rank-*.jsonl")):
        rank = int(path.stem[5:])
        for line in live_lines(path, started):
            number = line["generation"]
            if number not in configs:
                configs[number] = _config_of(run_folder, number)
            columns = 1 if configs[number].data.share_decoding else configs[number].parallel.columns
            yield Sighting(line["step"], rank % columns, line["positions"], line["keys"])


def compare(a: Path, b: Path) -> Comparison:
    """Two run folders. Raises RunFolderError where one is none, or the two have no step in common."""
    runs = [_opened(folder) for folder in (a, b)]
    found = Comparison(settings=_differing(_settings(a, runs[0]), _settings(b, runs[1])))
    keys = [_keys_by_step(folder) for folder in (a, b)]
    if all(keys):
        _compare(found, "keys", *keys)
    else:
        found.not_compared["keys"] = "log.sample_keys was not on in both"
    every = {_config_of(folder, max(started)).log.every_steps for folder, started in zip((a, b), runs, strict=True)}
    for name in METRICS:
        if name == "train/loss" and len(every) > 1:
            found.not_compared[name] = f"log.every_steps differs ({', '.join(map(str, sorted(every)))})"
            continue
        _compare(found, name, *(_metric(folder, started, name) for folder, started in zip((a, b), runs, strict=True)))
    digests = [_digests(folder, started) for folder, started in zip((a, b), runs, strict=True)]
    if all(digests):
        _compare(found, "digest", *digests)
    else:
        found.not_compared["digest"] = "log.digest_every_steps was not set in both"
    if not any(found.steps.values()):
        raise RunFolderError(f"{a} and {b} have no step in common of which both wrote something down")
    return found


def show(found: Comparison) -> None:
    """Print it: what was compared, where it parts first, and which settings differ."""
    rows = []
    for name, steps in found.steps.items():
        first, largest = found.first.get(name), found.largest.get(name)
        apart = "" if largest is None else f"{largest:.1e}"
        where = ("equal", "", "") if first is None else (f"step {first.step}", _short(first.a), _short(first.b))
        rows.append([name, str(steps), *where, apart])
    print_table("What both wrote down", ["what", "steps", "differs first at", "a", "b", "at most apart"], rows)
    for name, why in found.not_compared.items():
        print(f"not compared: {name} ({why})")
    if found.settings:
        rows = [[key, _short(a), _short(b)] for key, (a, b) in found.settings.items()]
        print_table("Settings, of the newest starts", ["setting", "a", "b"], rows)
    parted = [first.step for first in found.first.values()]
    print(f"they part at step {min(parted)}" if parted else "equal at every step that both have")


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _opened(folder: Path) -> dict[int, Start]:
    started = starts(folder / "attempts.jsonl")
    if not started:
        raise RunFolderError(f"{folder} holds no start of a run (attempts.jsonl), expected a run folder: give another")
    return started


def _compare(found: Comparison, name: str, a: Mapping[int, Any], b: Mapping[int, Any]) -> None:
    common = sorted(a.keys() & b.keys())
    found.steps[name] = len(common)
    differing = [step for step in common if not _same(a[step], b[step])]
    if differing:
        first = differing[0]
        found.first[name] = Difference(first, *_parts_that_differ(a[first], b[first]))
    if name in METRICS and common:
        found.largest[name] = max(_apart(a[step], b[step]) for step in common)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))  # NaN is what equals not even itself


def _apart(a: float, b: float) -> float:
    """The relative difference of two numbers; infinite where only one of them is finite."""
    if _same(a, b):
        return 0.0
    return abs(a - b) / max(abs(a), abs(b), 1e-12) if math.isfinite(a - b) else math.inf


def _parts_that_differ(a: Any, b: Any) -> tuple[Any, Any]:
    """Of two mappings, only what is not the same."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a, b
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return {name: a.get(name) for name in names}, {name: b.get(name) for name in names}


def _keys_by_step(folder: Path) -> dict[int, str]:
    """step -> digest of the set of (position, key), as hex: the same on every layout."""
    sums: dict[int, int] = {}
    for seen in sightings(folder):
        if seen.column == 0:
            for position, key in zip(seen.positions, seen.keys, strict=True):
                word = int.from_bytes(hashlib.sha256(f"{position}:{key}".encode()).digest()[:8], "little")
                sums[seen.step] = (sums.get(seen.step, 0) + word) % _WORD
    return {step: f"{value:016x}" for step, value in sums.items()}


def _metric(folder: Path, started: Mapping[int, Start], name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in live_lines(folder / "metrics.jsonl", started) if name in line}


def _digests(folder: Path, started: Mapping[int, Start]) -> dict[int, dict[str, str]]:
    """step -> "<tensor>/<weight or state>" -> digest."""
    return {line["step"]: line["digests"] for line in live_lines(folder / "digests.jsonl", started)}


def _settings(folder: Path, started: Mapping[int, Start]) -> dict[str, Any]:
    """Config, identity and record of the newest start, as dotted keys."""
    newest = max(started)
    identity, record = _json(folder / "identity.json"), _json(folder / "generations" / f"g{newest:04d}.json")
    last = [line for line in read_lines(folder / "attempts.jsonl") if line.get("event") == "start"][-1]
    return {
        **flattened(_config_of(folder, newest).model_dump(mode="json"), "config."),
        **flattened(identity, "identity."),
        **flattened({key: record.get(key) for key in ("versions", "git", "variables")}, "record."),
        **flattened(last["layout"], "layout."),
    }


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def _config_of(folder: Path, generation: int) -> Config:
    path = folder / "generations" / f"g{generation:04d}.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} has lines of start {generation} but no {path.name} in generations/")
    return load_config(path)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
