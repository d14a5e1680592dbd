"""What an order is worth: how well it mixes against a full permutation, and what each node reads for it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.hashing import hash64
from shards.index import ShardIndex
from shards.order import Order, batch_positions, part

MEASURED_BATCHES = 64


@dataclass(frozen=True)
class Mixing:
    """Of batches of the first epoch, spread evenly over it; each figure of the order and of a full permutation.

    classes: how many different ones a batch holds. repeat: standard deviation, from batch to batch, of how often a
    class comes (mean over the classes). distance: median, in epochs, between places in the next epoch of pairs that
    were neighbours in a batch. together: part of these pairs that is in one batch again.
    """

    classes: tuple[float, float]
    repeat: tuple[float, float]
    distance: tuple[float, float]
    together: tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """Of the node that reads most: shards and bytes of an epoch with a cache (whole shards) and by ranges (samples),
    and the most that its windows hold at a time.
    """

    shards: int
    cached_bytes: int
    ranged_bytes: int
    window_shards: int
    window_bytes: int


def mixing(index: ShardIndex, order: Order, batch_size: int) -> Mixing:
    """Measure the order of `index` in batches. InputError for a set smaller than a batch."""
    total = len(index)
    steps = total // batch_size
    if not steps:
        raise InputError(
            f"the set has {total} samples, fewer than a batch of {batch_size}: give a smaller --batch-size"
        )
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, MEASURED_BATCHES)).astype(np.int64))
    positions = np.stack([batch_positions(int(step), batch_size, order.lanes) for step in chosen])
    ours = order.samples(positions.ravel()).reshape(positions.shape)
    place = np.empty(total, dtype=np.int64)
    place[order.samples(np.arange(total, 2 * total, dtype=np.int64))] = np.arange(total)
    first, second = (np.argsort(hash64(order.seed, "mixing", np.arange(total), epoch)) for epoch in (0, 1))
    other = np.empty(total, dtype=np.int64)
    other[second] = np.arange(total)
    labels = index.samples["label"].astype(np.int64)
    pairs = [
        (*_classes(labels[batches], index.num_classes), *_neighbours(batches, where, batch_size))
        for batches, where in ((ours, place), (first[positions], other))
    ]
    return Mixing(*zip(*pairs, strict=True))


def _classes(labels: NDArray[np.int64], num_classes: int) -> tuple[float, float]:
    counts = np.stack([np.bincount(batch, minlength=num_classes) for batch in labels])
    return float((counts > 0).sum(1).mean()), float(counts.std(0).mean())


def _neighbours(batches: NDArray[np.int64], place: NDArray[np.int64], batch_size: int) -> tuple[float, float]:
    here, there = place[batches[:, :-1]].ravel(), place[batches[:, 1:]].ravel()
    together = (here // batch_size == there // batch_size).mean()
    return float(np.median(np.abs(here - there)) / len(place)), float(together)


def reading(index: ShardIndex, order: Order, batch_size: int, nodes: int) -> Reading:
    """What each of `nodes` equal parts of the batch reads in the first epoch. InputError where they are not equal."""
    if batch_size % nodes:
        raise InputError(f"a batch of {batch_size} samples does not divide over {nodes} nodes: give other --nodes")
    shard_bytes = np.array([row.bytes for row in index.shards], dtype=np.int64)
    whole = batch_positions(0, batch_size, order.lanes)
    samples = order.samples(np.arange(len(index), dtype=np.int64))
    # A node reads the same places of every batch.
    own = np.empty(batch_size, dtype=np.int64)
    for node in range(nodes):
        own[part(whole, node, nodes)] = node
    node_of = own[np.arange(len(index)) % batch_size]
    rows = index.samples[samples]
    taken = (rows["length"].astype(np.int64) + rows["head"]).astype(np.int64)
    read = []
    for node in range(nodes):
        mine = node_of == node
        shards = np.unique(rows["shard"][mine])
        lanes = np.unique(part(whole, node, nodes) % order.lanes).tolist()
        window = np.array(order.window_at(0, lanes), dtype=np.int64)
        read.append(
            Reading(
                len(shards),
                int(shard_bytes[shards].sum()),
                int(taken[mine].sum()),
                len(window),
                int(shard_bytes[window].sum()),
            )
        )
    return max(read, key=lambda one: one.cached_bytes)
