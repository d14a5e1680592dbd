"""Real ranks on the CPU: one torchrun start works through many cases; what they leave on disk is compared."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict

from dist_alexnet.checkpoint.contents import read_contents
from dist_alexnet.checkpoint.finding import resolve
from dist_alexnet.checkpoint.flat import FlatChunk, FlatReader
from dist_alexnet.track.jsonl import live_lines, starts

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One call of a function of tests/ranks/cases.py on every rank, as `kind`, with the config's overrides."""

    name: str
    overrides: tuple[str, ...] = ()
    kind: str = "train"
    extra: dict[str, Any] = field(default_factory=dict)


def environment() -> dict[str, str]:
    """For ranks on two cores: one thread each; no compiler behind DeepSpeed's import of torch."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # Or ranks that torchrun starts again find the addresses of the dead ones, and wait for them.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def torchrun(world_size: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    return [*launcher, *arguments]


def run_cases(
    world_size: int, config: Path, cases: list[Case], timeout_s: float = 300, module: str = "tests.ranks.cases"
) -> None:
    """Run the cases in turn on `world_size` ranks. A case leaves `<runs>/<name>`; any error fails the test."""
    listed = config.with_name(f"cases-{world_size}-{cases[0].name}.json")
    listed.write_text(json.dumps([asdict(case) for case in cases]))
    command = torchrun(world_size, "-m", module, str(config), str(listed))
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun then ends its ranks; killed, it would leave them behind
        out, err = process.communicate(timeout=60)
        raise AssertionError(f"still running after {timeout_s} s\n{out[-2000:]}\n{err[-6000:]}") from None
    assert process.returncode == 0, f"{out[-2000:]}\n{err[-6000:]}"


def losses(run: Path) -> list[float]:
    """train/loss of every step that counts, in order."""
    lines = [line for line in live_lines(run / "metrics.jsonl", starts(run / "attempts.jsonl")) if "train/loss" in line]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    return [line["train/loss"] for line in lines]


def keys_by_position(run: Path) -> dict[int, str]:
    """Which key was seen at each position of the endless line; a position that differs between ranks fails."""
    started, seen = starts(run / "attempts.jsonl"), dict[int, str]()
    for path in sorted((run / "keys").glob("rank-*.jsonl")):
        for line in live_lines(path, started):
            for position, key in zip(line["positions"], line["keys"], strict=True):
                assert seen.setdefault(position, key) == key
    return seen


def sightings(run: Path, columns: int) -> dict[int, int]:
    """How often each position was seen by replicas (columns of one replica see the same pictures)."""
    started, counts = starts(run / "attempts.jsonl"), dict[int, int]()
    for path in (run / "keys").glob("rank-*.jsonl"):
        for line in live_lines(path, started):
            for position in line["positions"]:
                counts[position] = counts.get(position, 0) + 1
    assert all(count % columns == 0 for count in counts.values())
    return {position: count // columns for position, count in counts.items()}


def tensors(checkpoint: Path | str) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole: weights and momentum, flattened."""
    folder = resolve(checkpoint)
    whole = {
        name: torch.full((stored.size[0],), torch.nan)
        for name, stored in read_contents(folder).state_dict_metadata.items()
    }
    chunks = {name: FlatChunk(values, 0, values.numel()) for name, values in whole.items()}
    load_state_dict(chunks, storage_reader=FlatReader(folder), no_dist=True)
    assert all(not values.isnan().any() for values in whole.values())
    return whole


def difference(a: Path | str, b: Path | str) -> float:
    """Largest difference between two checkpoints' tensors, relative to each tensor's largest element."""
    one, other = tensors(a), tensors(b)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max().clamp_min(1e-12)) for name in one)
