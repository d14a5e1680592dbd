"""A small state to save and to find again, for tests of one process and of several."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.commit import Found
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.engine import Fragment, Kind

SIZES = {"conv1.weight": 1000, "conv1.bias": 7, "fc8.weight": 64}
KINDS: tuple[Kind, ...] = ("weight", "momentum")


def fragments(fill: float = 0.0) -> list[Fragment]:
    """This rank's run of every tensor; each element another number, which `fill` raises."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts = []
    for name, size in SIZES.items():
        start, stop = rank * size // world_size, (rank + 1) * size // world_size
        for kind in KINDS if stop > start else ():
            values = torch.arange(start, stop) * (1.0 if kind == "weight" else -0.5) + fill
            parts.append(Fragment(name, kind, values, start, size))
    return parts


def save(run: Path | Place, step: int, generation: int = 1, parts: Iterable[Fragment] | None = None) -> Place:
    """A checkpoint that is filled with the number of its step."""
    return store.save(
        run,
        fragments(step) if parts is None else parts,
        step=step,
        generation=generation,
        layout={"data": dist.get_world_size()},
        versions=store.versions(),
        state={"samples": step * 64},
    )


def empty(parts: list[Fragment]) -> list[Fragment]:
    return [
        Fragment(one.name, one.kind, torch.full_like(one.values, torch.nan), one.offset, one.total) for one in parts
    ]


def held(found: Found | None) -> float:
    """The number by which `fragments` were filled, checked in every element."""
    assert found is not None
    parts = empty(fragments())
    store.load(found, parts)
    fill = parts[0].values[0].item() - parts[0].offset
    for ours, theirs in zip(parts, fragments(fill), strict=True):
        assert torch.equal(ours.values, theirs.values)
    return fill
