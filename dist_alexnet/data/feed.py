"""Batches on their way, and the processes that load them."""

from collections.abc import Callable, Generator, Iterator

from dist_alexnet.data.batch import Batch


class Feed(Iterator[Batch]):
    """Batches whose loader processes can be sent away between two of them.

    They start again when the next batch is asked for; which batch that is does not change.
    """

    def __init__(self, batches_from: Callable[[int], Generator[Batch, None, None]]) -> None:
        self._batches_from, self._taken = batches_from, 0
        self._under_way: Generator[Batch, None, None] | None = None

    def __next__(self) -> Batch:
        if self._under_way is None:
            self._under_way = self._batches_from(self._taken)
        batch = next(self._under_way)
        self._taken += 1
        return batch

    def rest(self) -> None:
        """End the loader processes, until the next batch is asked for."""
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None

    def close(self) -> None:
        """The same, for good."""
        self.rest()
