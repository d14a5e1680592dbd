"""The order of samples over grids of worlds, without a process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import Order, auto_lanes, batch_positions, part, upcoming_in_index_order

GOLDEN_ORDER = [11, 1, 3, 20, 10, 2, 5, 19, 12, 16, 7, 18, 14, 15, 6, 17, 9, 0, 4, 8, 13]


def make(sizes: list[int], lanes: int = 8, window_shards: int = 2, seed: int = 7) -> Order:
    return Order(np.array(sizes, dtype=np.int64), seed, lanes, window_shards)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_each_sample_stands_once_in_each_epoch(sizes: list[int], log_lanes: int, window: int, epoch: int) -> None:
    order = make(sizes, lanes=2**log_lanes, window_shards=window)
    total = order.epoch_samples
    ids = order.samples(np.arange(epoch * total, (epoch + 1) * total))
    assert sorted(ids) == list(range(total))


def test_an_epoch_is_another_order_and_a_seed_too() -> None:
    order = make([50] * 8)
    total = order.epoch_samples
    first, second = order.samples(np.arange(total)), order.samples(np.arange(total, 2 * total))
    assert (first != second).mean() > 0.9
    assert (make([50] * 8, seed=8).samples(np.arange(total)) != first).mean() > 0.9


def test_golden_order() -> None:
    """Frozen: a change here is another run for everybody who has one going."""
    order = make([5, 3, 9, 4], lanes=4, window_shards=1, seed=3)
    assert order.samples(np.arange(21, 42)).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("data", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_layout_covers_the_same_batch(data: int, accumulation: int, replicas: int) -> None:
    batch_size = 96
    whole = batch_positions(5, batch_size, auto_lanes(batch_size))
    assert sorted(whole) == list(range(480, 576))
    runs = [
        part(part(part(whole, d, data), a, accumulation), r, replicas)
        for d in range(data)
        for a in range(accumulation)
        for r in range(replicas)
    ]
    assert {len(run) for run in runs} == {batch_size // (data * accumulation * replicas)}
    assert np.concatenate(runs).tolist() == whole.tolist()


@pytest.mark.parametrize("nodes", [2, 3, 5, 8])
def test_a_node_opens_its_share_of_the_shards(nodes: int) -> None:
    """8 simulated nodes: each opens at most 1/8 of the shards, plus the borders of its lanes."""
    shards, batch_size = 512, 960
    lanes = auto_lanes(batch_size)
    order = make([100] * shards, lanes=lanes, window_shards=2)
    steps = order.epoch_samples // batch_size
    lanes_of_node = -(-lanes // nodes) + 1 if lanes % nodes else lanes // nodes
    for node in range(nodes):
        positions = np.concatenate([part(batch_positions(n, batch_size, lanes), node, nodes) for n in range(steps)])
        opened = np.unique(order.samples(positions) // 100)
        assert len(opened) <= shards / nodes + 2 * lanes_of_node
        assert len(opened) < shards / nodes * 1.5


def test_positions_may_come_in_any_order_and_span_epochs() -> None:
    order = make([5, 3, 9, 4], lanes=4)
    line = order.samples(np.arange(100))
    mixed = np.random.default_rng(0).permutation(100)
    assert order.samples(mixed).tolist() == line[mixed].tolist()


@pytest.mark.parametrize(("batch_size", "lanes"), [(128, 64), (12, 4), (96, 32), (7, 1), (1, 1), (32768, 64)])
def test_auto_lanes(batch_size: int, lanes: int) -> None:
    assert auto_lanes(batch_size) == lanes


def test_batches_mix_the_shards() -> None:
    """Shards that each hold one class still give mixed batches: lanes start in different shards."""
    order = make([64] * 64, lanes=64, window_shards=4)
    shards = order.samples(np.arange(128)) // 64
    assert len(np.unique(shards)) > 24


# ---- Any world ------------------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn, batch_size: int) -> tuple[int, int, int]:
    """(data ranks, accumulation, replicas) that divide the batch: up to 64 data ranks."""
    data = draw(st.sampled_from([d for d in range(1, 65) if batch_size % d == 0]))
    accumulation = draw(st.sampled_from([a for a in range(1, 9) if batch_size // data % a == 0]))
    replicas = draw(st.sampled_from([r for r in range(1, 9) if batch_size // data // accumulation % r == 0]))
    return data, accumulation, replicas


def batch_in(world: tuple[int, int, int], step: int, batch_size: int, lanes: int, workers: int) -> np.ndarray:
    """A global batch as the ranks of a world load it, rank by rank, each by `workers` that take lists in turn."""
    data, accumulation, replicas = world
    whole = batch_positions(step, batch_size, lanes)
    seen = np.full((data, accumulation, replicas, batch_size // (data * accumulation * replicas)), -1)
    for d in range(data):
        lists = [part(part(whole, d, data), a, accumulation) for a in range(accumulation)]
        for r in range(replicas):
            for worker in range(workers):
                for a in range(worker, accumulation, workers):
                    seen[d, a, r] = part(lists[a], r, replicas)
    return seen.reshape(-1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_worlds_one_after_the_other_see_each_sample_once_an_epoch(data: st.DataObject) -> None:
    """Worlds, loader workers and resume points change; global batches are those of one process, sample by sample."""
    batch_size = data.draw(st.integers(1, 12)) * data.draw(st.sampled_from([1, 2, 3, 7, 8, 16, 64]))
    lanes = data.draw(st.sampled_from([n for n in (1, 2, 3, 4, 8, 16, 64) if batch_size % n == 0]))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=20))
    order = make(sizes, lanes=lanes, window_shards=data.draw(st.integers(0, 4)), seed=data.draw(st.integers(0, 99)))
    steps = -(-2 * order.epoch_samples // batch_size)
    stops = sorted(data.draw(st.lists(st.integers(0, steps), max_size=3)))
    line = []
    for begin, end in zip([0, *stops], [*stops, steps], strict=True):
        world, workers = data.draw(worlds(batch_size)), data.draw(st.integers(1, 8))
        for step in range(begin, end):
            batch = batch_in(world, step, batch_size, lanes, workers)
            assert batch.tolist() == batch_positions(step, batch_size, lanes).tolist()
            line.append(batch)
    positions = np.concatenate(line)
    for epoch in range(2):
        inside = positions[positions // order.epoch_samples == epoch]
        assert sorted(order.samples(inside).tolist()) == list(range(order.epoch_samples))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_comes_is_known_in_advance(data: st.DataObject) -> None:
    """From any position on, until the one to ask again at, nothing is read but what was named; over epochs' ends."""
    lanes = data.draw(st.sampled_from([1, 2, 4, 8]))
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=16))
    order = make(sizes, lanes=lanes, window_shards=data.draw(st.integers(0, 4)))
    own = data.draw(st.lists(st.integers(0, lanes - 1), min_size=1, unique=True))
    position = data.draw(st.integers(0, 3 * order.epoch_samples))
    shards, until = order.upcoming(position, own)
    assert until > position
    assert len(set(shards)) == len(shards)
    inside = np.array([p for p in range(position, until) if p % lanes in own], dtype=np.int64)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    assert set(shard_of[order.samples(inside)].tolist()) <= set(shards)


def test_what_comes_first_is_named_first_and_others_lanes_are_not() -> None:
    order = make([100] * 64, lanes=8, window_shards=2)
    shards, _ = order.upcoming(0, [2])
    positions = np.arange(2, order.epoch_samples, 8)
    line = order.samples(positions) // 100
    window = set(line[: order.window_samples].tolist())
    assert set(shards[: len(window)]) == window
    assert set(shards) <= set(line.tolist())
    assert len(shards) < len(set(line.tolist())) < 64 / 8 + 2


def test_an_evaluations_shards_come_in_index_order() -> None:
    sizes = np.array([5, 3, 9, 4])
    assert upcoming_in_index_order(0, sizes, count=2) == ([0, 1], 8)
    assert upcoming_in_index_order(8, sizes, count=2) == ([2, 3], 21)
    assert upcoming_in_index_order(20, sizes, count=8) == ([3], 21)
