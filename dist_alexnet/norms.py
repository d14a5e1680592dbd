"""L2 norms of gradients, weights and changes, by logical tensor: the same on every layout, as the digests are.

Squares add up, so each rank adds up those of what it would save, and one all-reduce of a few numbers ends it.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.engine import Engine, Fragment
from dist_alexnet.optim.norm import sum_of_squares

GRADIENT, WEIGHT, CHANGE = range(3)


class Norms:
    """Of one engine's steps, where somebody asks: the others cost nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rows = {one.tensor.name: row for row, one in enumerate(engine.learned)}
        self._device = engine.learned[0].parameter.device
        # This rank's share of the last update that was looked at: row, column, sum of squares.
        self._found: list[tuple[int, int, Tensor]] | None = None

    @contextmanager
    def looking(self, due: bool) -> Iterator[None]:
        """Around the engine's `step`, after its `health`. Asks the device for nothing yet."""
        self._found = None
        if not due:
            yield
            return
        self._found = []
        self._note(GRADIENT, self._engine.gradients())
        with self._engine.telling(lambda part: self._note(CHANGE, [part])):
            yield
        self._note(WEIGHT, (part for part in self._engine.fragments_to_save() if part.kind == "weight"))

    def values(self) -> dict[str, float]:
        """Keys of metrics, of the last update if it was looked at; weights alone where that was dropped.

        All ranks call it, and get the same. One small all-reduce, and the host waits for the device.
        """
        if self._found is None:
            return {}
        squares_N3 = torch.zeros(len(self._rows), 3, dtype=torch.float64, device=self._device)
        if self._found:
            rows, columns, squares = zip(*self._found, strict=True)
            squares_N3[list(rows), list(columns)] = torch.stack(squares)
        dist.all_reduce(squares_N3)
        self._found = None
        of_all = dict(zip(self._rows, squares_N3.tolist(), strict=True))
        values = _norms("norm/weight", {name: squares[WEIGHT] for name, squares in of_all.items()})
        if self._engine.dropped:
            return values
        values |= _norms("norm/gradient", {name: squares[GRADIENT] for name, squares in of_all.items()})
        for name, squares in of_all.items():
            if squares[WEIGHT] > 0:
                values[f"optim/update_ratio/{name}"] = math.sqrt(squares[CHANGE] / squares[WEIGHT])
        return values

    @torch.no_grad()
    def _note(self, column: int, fragments: Iterable[Fragment]) -> None:
        assert self._found is not None
        self._found += [(self._rows[part.name], column, sum_of_squares(part.values)) for part in fragments]


def _norms(key: str, squares: dict[str, float]) -> dict[str, float]:
    """Of all tensors together, and of each."""
    return {
        key: math.sqrt(math.fsum(squares.values())),
        **{f"{key}/{name}": math.sqrt(square) for name, square in squares.items()},
    }
