"""Ranks that agree: what one finds out, or what goes wrong on one, all know.

Otherwise a rank that fails leaves the others waiting in their next collective.
"""

import traceback
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from shards.errors import DistAlexnetError

T = TypeVar("T")


def on_first_rank(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Run `work` on rank 0; its result, or its error, is every rank's. `group`: of all ranks, for another thread."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        box[0] = _tried(work)
    dist.broadcast_object_list(box, src=0, group=group)
    result: T = _unpacked(box[0], 0)
    return result


def on_every_rank(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Run `work` on every rank; all results in order of rank, or the first error on all of them."""
    mine = _tried(work)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine, group=group)
    return [_unpacked(outcome, rank) for rank, outcome in enumerate(outcomes)]


def together(work: Callable[[], T]) -> T:
    """Run `work` on every rank; this rank's result, or the first error on all of them."""
    mine = _tried(work)
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, (None, mine[1]))
    for rank, outcome in enumerate(errors):
        _unpacked(outcome, rank)
    return cast(T, mine[0])


def _tried(work: Callable[[], T]) -> tuple[T | None, DistAlexnetError | str | None]:
    """(result, error): ours as it is, any other as its traceback, because not every exception can be sent."""
    try:
        return work(), None
    except DistAlexnetError as error:
        return None, error
    except Exception:
        return None, traceback.format_exc()


def _unpacked(outcome: tuple[Any, DistAlexnetError | str | None], rank: int) -> Any:
    result, error = outcome
    if isinstance(error, str):
        raise RuntimeError(f"rank {rank} failed:\n{error}")
    if error is not None:
        raise error
    return result
