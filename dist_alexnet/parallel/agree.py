"""Ranks that agree: what one finds out, or what goes wrong on one, all know."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from shards.errors import DistAlexnetError

T = TypeVar("T")


def on_first_rank(work: Callable[[], T]) -> T:
    """Run `work` on rank 0; its result, or its DistAlexnetError, is every rank's."""
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        box[0] = _tried(work)
    dist.broadcast_object_list(box, src=0)
    result: T = _unpacked(box[0])
    return result


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank; all results in order of rank, or the first rank's DistAlexnetError on all of them."""
    mine = _tried(work)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    return [_unpacked(outcome) for outcome in outcomes]


def _tried(work: Callable[[], T]) -> tuple[T | None, DistAlexnetError | None]:
    try:
        return work(), None
    except DistAlexnetError as error:
        return None, error


def _unpacked(outcome: tuple[Any, DistAlexnetError | None]) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result
