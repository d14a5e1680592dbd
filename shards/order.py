"""Who reads what, when: arithmetic only, without files, processes or state.

Everything is a function of a position on one endless line. With N samples in the index and a global batch of B:

    epoch e         holds the positions [e*N, (e+1)*N)
    global batch n  holds the positions [n*B, (n+1)*B)

Which sample stands at a position. An epoch permutes the shards by (seed, epoch), lays them end to end, and cuts that
line into L lanes that are equal to one sample. Position p reads lane p mod L of its epoch, at the lane's next place. A
window shuffle mixes the samples inside a lane, window by window. None of this knows how many ranks there are.

Who reads a position. L divides B, so slot s = p mod L of every batch reads lane s. A batch is listed slot by slot
(`batch_positions`) and that list is cut into equal runs: over the data ranks, each run into micro-batches, each
micro-batch over the replicas of a model group. A rank therefore reads whole lanes, its share of the shards and the
borders of its lanes, and not all of them. A run of any layout covers the same batch.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.hashing import hash64

MAX_AUTO_LANES = 64


def auto_lanes(batch_size: int) -> int:
    """The largest power of two up to 64 that divides the global batch: `data.lanes: auto`."""
    return min(MAX_AUTO_LANES, batch_size & -batch_size)


def batch_positions(step: int, batch_size: int, lanes: int) -> np.ndarray:
    """Positions of global batch `step`, slot by slot: int64 (batch_size,). `lanes` divides `batch_size`."""
    first = step * batch_size
    return (first + np.arange(batch_size, dtype=np.int64)).reshape(-1, lanes).T.reshape(-1)


def data_steps(steps: np.ndarray, skipped: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which global batches steps read: step n reads the n-th batch of the line that is not skipped. int64 (steps,).

    skipped: rising ranges [first, end) of global batches, none of which reaches into the next.
    """
    batches = np.array(steps, dtype=np.int64)
    for first, end in skipped:
        batches[batches >= first] += end - first
    return batches


def part(positions: np.ndarray, index: int, parts: int) -> np.ndarray:
    """Run `index` of `parts` equal runs of a list whose length `parts` divides."""
    length = len(positions) // parts
    return positions[index * length : (index + 1) * length]


@dataclass(frozen=True)
class Order:
    """The endless line over shards of the given sizes.

    samples_per_shard: int64 (shards,), in index order. lanes: L. window_shards: how many shards' worth of samples one
    window of the shuffle holds (0: no shuffle inside a lane).
    """

    samples_per_shard: np.ndarray
    seed: int
    lanes: int
    window_shards: int
    _windows: OrderedDict[tuple[int, int, int], np.ndarray] = field(default_factory=OrderedDict, repr=False)
    _epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=OrderedDict, repr=False)

    @property
    def epoch_samples(self) -> int:
        """N: how many samples one epoch holds."""
        return int(self.samples_per_shard.sum())

    @property
    def window_samples(self) -> int:
        """How many neighbouring places of a lane are shuffled together."""
        return max(1, self.window_shards * self._mean_samples)

    @property
    def _stride(self) -> int:
        """Places of a lane that are read at once as far as shards go: a window; without windows, about a shard."""
        return self.window_samples if self.window_shards else self._mean_samples

    @property
    def _mean_samples(self) -> int:
        return -(-self.epoch_samples // len(self.samples_per_shard))

    def samples(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids (rows of the index) at the given positions: int64, same shape, order kept."""
        out = np.empty(len(positions), dtype=np.int64)
        epochs = positions // self.epoch_samples
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            out[chosen] = self._samples_of_epoch(int(epoch), positions[chosen])
        return out

    def lane_starts(self, epoch: int) -> np.ndarray:
        """Where each lane begins on the epoch's line of samples: int64 (lanes + 1,), the last one is N."""
        total, lanes = self.epoch_samples, self.lanes
        # Lane s has the positions q of the epoch with (epoch*N + q) mod L == s; the first of them is:
        first = (np.arange(lanes, dtype=np.int64) - epoch * total) % lanes
        lengths = np.maximum(0, -((first - total) // lanes))  # ceil((N - first) / L)
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])

    def upcoming(self, position: int, lanes: Sequence[int]) -> tuple[list[int], int]:
        """(shards, position to ask again at): what `lanes` read from `position` on, in order of need, each once.

        That is the window of each lane that the position falls in, and its next one: within a window all shards are
        read at once.
        """
        shards = self.window_at(position, lanes) + self.window_at(position, lanes, 1)
        end_of_epoch = (position // self.epoch_samples + 1) * self.epoch_samples
        return list(dict.fromkeys(shards)), min(position + self.lanes * max(1, self._stride // 4), end_of_epoch)

    def window_at(self, position: int, lanes: Sequence[int], ahead: int = 0) -> list[int]:
        """Shards under the window of each of `lanes` that the position falls in, or under a later one; each once."""
        epoch, place = position // self.epoch_samples, position % self.epoch_samples // self.lanes
        window = place // self._stride + ahead
        shards = [shard for lane in lanes for shard in self._shards_of_window(epoch, lane, window, self._stride)]
        return list(dict.fromkeys(shards))

    def _shards_of_window(self, epoch: int, lane: int, window: int, size: int) -> list[int]:
        """Shards under one window of a lane; past the lane's end, under the first window in the next epoch."""
        starts = self.lane_starts(epoch)
        begin, end = int(starts[lane]) + window * size, int(starts[lane + 1])
        if begin >= end:
            return self._shards_of_window(epoch + 1, lane, 0, size) if window else []
        shards, ends = self._line(epoch)
        first, last = np.searchsorted(ends, [begin, min(begin + size, end) - 1], side="right")
        return [int(shard) for shard in shards[first : last + 1]]

    def _samples_of_epoch(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        starts = self.lane_starts(epoch)
        lanes = positions % self.lanes
        places = (positions - epoch * self.epoch_samples) // self.lanes
        line = np.empty(len(positions), dtype=np.int64)
        for lane in np.unique(lanes):
            chosen = lanes == lane
            length = int(starts[lane + 1] - starts[lane])
            line[chosen] = starts[lane] + self._shuffled(epoch, int(lane), length, places[chosen])
        return self._samples_on_line(epoch, line)

    def _shuffled(self, epoch: int, lane: int, length: int, places: np.ndarray) -> np.ndarray:
        """Places inside one lane after the window shuffle."""
        if not self.window_shards:
            return places
        size = self.window_samples
        out = np.empty_like(places)
        for window in np.unique(places // size):
            chosen = places // size == window
            order = self._window(epoch, lane, int(window), min(size, length - int(window) * size))
            out[chosen] = window * size + order[places[chosen] - window * size]
        return out

    def _window(self, epoch: int, lane: int, window: int, size: int) -> np.ndarray:
        key = (epoch, lane, window)
        if key not in self._windows:
            where = np.full(size, epoch * self.lanes + lane, dtype=np.int64)
            unit = window * self.window_samples + np.arange(size, dtype=np.int64)
            self._windows[key] = np.argsort(hash64(self.seed, "order/window", where, unit), kind="stable")
            while len(self._windows) > 2 * self.lanes:  # two windows a lane: the one being read and its neighbour
                self._windows.popitem(last=False)
        return self._windows[key]

    def _samples_on_line(self, epoch: int, line: np.ndarray) -> np.ndarray:
        """Places on the epoch's line of shards laid end to end -> sample ids."""
        shards, ends = self._line(epoch)
        turn = np.searchsorted(ends, line, side="right")
        shard = shards[turn]
        first_sample = np.cumsum(self.samples_per_shard) - self.samples_per_shard
        samples: np.ndarray = first_sample[shard] + line - (ends[turn] - self.samples_per_shard[shard])
        return samples

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards end to end: (shards in order, where on the line each ends)."""
        if epoch not in self._epochs:
            where = np.full(len(self.samples_per_shard), epoch, dtype=np.int64)
            unit = np.arange(len(self.samples_per_shard), dtype=np.int64)
            shards = np.argsort(hash64(self.seed, "order/shards", where, unit), kind="stable")
            self._epochs[epoch] = (shards, np.cumsum(self.samples_per_shard[shards]))
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


def upcoming_in_index_order(sample_id: int, samples_per_shard: np.ndarray, count: int = 8) -> tuple[list[int], int]:
    """`Order.upcoming` of an evaluation: the next `count` shards from that of `sample_id` on."""
    ends = np.cumsum(samples_per_shard)
    first = int(np.searchsorted(ends, sample_id, side="right"))
    shards = list(range(first, min(first + count, len(ends))))
    return shards, int(ends[min(first + count // 2, len(ends) - 1)])


def evaluation_positions(step: int, batch_size: int, total: int) -> np.ndarray:
    """Sample ids of evaluation batch `step`, in index order: int64 (batch_size,); past the last one, -1 (weight 0)."""
    ids = step * batch_size + np.arange(batch_size, dtype=np.int64)
    return np.where(ids < total, ids, -1)
