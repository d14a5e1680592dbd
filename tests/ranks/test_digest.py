"""Digests of the same state are the same on every layout and ZeRO stage."""

from pathlib import Path

from dist_alexnet.track.jsonl import read_lines
from tests.ranks.harness import Case, run_cases

# At rate 0 no weight moves, so 2 steps on any layout end at the same bits; momentum is of gradients and does not.
STILL = ("run.steps=2", "optimizer.lr=0", "log.digest_every_steps=1", "data.val=null")
LAYOUTS = {
    "digest-columns": ("parallel.columns=2",),
    "digest-replicas-zero-2": ("parallel.replicas=2", "parallel.zero_stage=2"),
    "digest-data-zero-3": ("parallel.zero_stage=3",),
}


def digests(run: Path, step: int, part: str) -> dict[str, str]:
    (line,) = [line for line in read_lines(run / "digests.jsonl") if line["step"] == step]
    return {name: digest for name, digest in line["digests"].items() if name.endswith(f"/{part}")}


def test_layouts_agree(config: Path, runs: Path) -> None:
    cases = [Case(name, (*STILL, *over)) for name, over in LAYOUTS.items()]
    run_cases(2, config, [*cases, Case("digest-moving", (*STILL, "optimizer.lr=0.001"))])
    still = digests(runs / "digest-columns", 2, "weight")
    assert len(still) == 16
    assert all(digests(runs / name, step, "weight") == still for name in LAYOUTS for step in (1, 2))
    moving = digests(runs / "digest-moving", 2, "weight")
    assert all(moving[name] != digest for name, digest in still.items())
    assert digests(runs / "digest-moving", 1, "state") != digests(runs / "digest-moving", 2, "state")
